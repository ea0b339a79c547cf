"""Quantities of MACE models as the reference numbers of foundation models have them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.models.base import Model
from fpmace.models.geometry import Geometry
from fpmace.models.mace import MACE, ScaleShiftMACE


def compute_mace(model: Model, batch: Batch) -> dict[str, NDArray[np.float64]]:
    """Energies, their parts before scale and shift, forces and virials, as arrays."""
    assert isinstance(model, MACE | ScaleShiftMACE)
    positions = batch.positions.clone().requires_grad_(True)
    strain = torch.zeros_like(batch.cell, requires_grad=True)
    geometry = model.geometry(replace(batch, positions=positions), strain)
    result = model(geometry)
    d_positions, d_strain = torch.autograd.grad(result.energy.sum(), [positions, strain])
    found = {
        "energy": result.energy,
        "node_energy": result.node_energy,
        "interaction_energy": result.interaction_energy,
        "contributions": _contributions(model, geometry),
        "forces": -d_positions,
        "virials": -d_strain,
    }
    return {key: value.detach().numpy() for key, value in found.items()}


def _contributions(model: Any, geometry: Geometry) -> Tensor:
    """[n_graphs, 3 + n_readouts]: free atoms, embedded inputs, repulsion, readouts."""
    features = model.backbone_features(geometry)
    atomic = model.atomic_energies_fn(geometry.element, geometry.head)
    parts = [model.embedding_energies(features, geometry), model.pair_energies(geometry)]
    present = [torch.zeros_like(atomic) if part is None else part for part in parts]
    read = model.readout_energies(features.node_feats_per_layer, geometry)
    return geometry.sum_over_atoms(torch.stack([atomic, *present, *read], dim=-1))
