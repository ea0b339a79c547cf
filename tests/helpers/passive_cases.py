"""Tiny models with the passive rule and the energy that belongs to it."""

from __future__ import annotations

from typing import Any

import torch
from ase import Atoms
from fixed_point_cases import SMALL, structure

from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.registry import build

CHOSEN = ("field_feature_norms", "include_electrostatic_self_interaction")
QUADRUPOLES = {"atomic_multipoles_max_l": 2, "hidden_irreps": "4x0e+4x1o+4x2e"}


def passive_model(boundary: str = "pbc", *, seed: int = 0, **options: Any) -> FixedPointCore:
    """Random weights; the features are left to the model."""
    settings: dict[str, Any] = {
        **{name: value for name, value in SMALL.items() if name not in CHOSEN},
        "atomic_numbers": [1, 8],
        "atomic_energies": [-1.5, 2.5],
        "pbc_handling": boundary,
        "fixedpoint_update_config": {"type": "OneBodyPassiveUpdate", "n_vectors": 4},
        "field_readout_config": "VariationalFieldReadout",
        "use_linear_local_charges": True,
        **options,
    }
    torch.manual_seed(seed)
    model: FixedPointCore = build("model", {"type": "FixedPoint", **settings})
    if model.anchor_isolated_atoms:
        torch.nn.init.uniform_(model.electronegativity, 0.2, 1.0)
    return model


def structures(boundary: str = "pbc") -> list[Atoms]:
    """Two structures of different size and charge, in fields."""
    return [
        structure(boundary, field=(0.1, -0.05, 0.2)),
        structure(boundary, n_molecules=3, charge=1.0, field=(0.0, 0.1, 0.0)),
    ]
