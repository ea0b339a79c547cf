"""Quantities of PolarMACE as the reference numbers of foundation models have them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.models.base import Model
from fpmace.models.polar import PolarMACE
from fpmace.observables.predict import predict
from verification.polar_conventions import use_polar_conventions


def compute_polar(model: Model, batch: Batch) -> dict[str, NDArray[np.float64]]:
    """Energies and their parts, densities of both spins, derivatives, as arrays."""
    assert isinstance(model, PolarMACE)
    use_polar_conventions(model)
    batch = replace(batch, cell=_replaced_cells(model.r_max, batch))
    with torch.no_grad():
        parts = _contributions(model, batch)
    found = predict(model, batch, outputs=("forces", "virials", "spin_density"))
    assert found.density is not None
    assert found.spin_density is not None
    density, spin = found.density, found.spin_density
    assert found.contributions is not None
    values = {
        "energy": found.energy,
        "node_energy": found.node_energy,
        "interaction_energy": found.contributions[:, 1:].sum(-1),
        "contributions": parts,
        "density_coefficients": density,
        "spin_density": spin,
        "spin_charge_density": 0.5 * torch.stack([density + spin, density - spin], dim=1),
        "charges": density[:, 0],
        "spins": spin[:, 0],
        "external_field": batch.external_field,
        **{
            name: getattr(found, name)
            for name in (
                "forces",
                "virials",
                "dipole",
                "total_charge",
                "electrostatic_energy",
                "electron_energy",
            )
        },
    }
    return {key: value.detach().numpy() for key, value in values.items()}


def _contributions(model: Any, batch: Batch) -> Tensor:
    """[n_graphs, 3 + n_readouts]: free atoms, twice nothing, readouts."""
    geometry = model.geometry(batch)
    atomic = model.atomic_energies_fn(geometry.element, geometry.head)
    layers = model.backbone_features(geometry).node_feats_per_layer
    nothing = torch.zeros_like(atomic)
    columns = [atomic, nothing, nothing, *model.readout_energies(layers, geometry)]
    return geometry.sum_over_atoms(torch.stack(columns, dim=-1))


def _replaced_cells(r_max: float, batch: Batch) -> Tensor:
    """Cells whose vectors along directions that are not periodic depend on the positions."""
    largest = torch.zeros(batch.n_graphs, dtype=batch.positions.dtype)
    sizes = batch.positions.abs().amax(-1)
    largest = largest.scatter_reduce(0, batch.batch, sizes, "amax", include_self=False)
    box = 5.0 * r_max * (largest + 1.0).view(-1, 1, 1) * torch.eye(3, dtype=largest.dtype)
    return torch.where(batch.pbc.unsqueeze(-1), batch.cell, box)
