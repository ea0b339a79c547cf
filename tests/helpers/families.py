"""A small model of any family, and a triclinic crystal to put it on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms

from fpmace.models.base import Model
from fpmace.registry import build

R_MAX = 3.5
CELL = np.array([[4.2, 0.0, 0.0], [0.7, 4.5, 0.0], [0.0, 0.0, 4.9]])
FAMILY: dict[str, Any] = {
    "atomic_numbers": [1, 8],
    "atomic_energies": [-1.0, -2.0],
    "r_max": R_MAX,
    "num_bessel": 4,
    "max_ell": 2,
    "hidden_irreps": "4x0e+4x1o",
    "radial_MLP": [8],
    "correlation": 2,
    "MLP_irreps": "4x0e",
}


def make_family(seed: int, **options: Any) -> Model:
    """A model of random weights; ``type`` names its family."""
    torch.manual_seed(seed)
    model: Model = build("model", {**FAMILY, **options})
    return model


def crystal(cell: np.ndarray = CELL, pbc: Any = True) -> Atoms:
    """Six atoms, not at rest."""
    scaled = np.random.default_rng(1).uniform(0, 1, (6, 3))
    return Atoms("OHHOHH", scaled_positions=scaled, cell=cell, pbc=pbc)
