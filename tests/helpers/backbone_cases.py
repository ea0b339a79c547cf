"""Small random models and structures for the backbone tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.models.mace import MACE, ScaleShiftMACE
from fpmace.testing.systems import structure_batch

INTERACTIONS = (
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
)
OPTIONS: dict[str, Any] = {
    "r_max": 3.5,
    "num_bessel": 4,
    "num_polynomial_cutoff": 5,
    "max_ell": 2,
    "num_interactions": 2,
    "hidden_irreps": "3x0e+3x1o",
    "MLP_irreps": "4x0e",
    "avg_num_neighbors": 5.0,
    "atomic_numbers": [1, 6, 8],
    "atomic_energies": [0.3, -0.7, 0.2],
    "correlation": 3,
    "radial_MLP": [8],
}


def model(kind: type = MACE, seed: int = 0, **options: Any) -> Any:
    """A model with random weights; ``options`` override OPTIONS."""
    torch.manual_seed(seed)
    if kind is ScaleShiftMACE:
        options = {"atomic_inter_scale": 0.8, "atomic_inter_shift": -0.1, **options}
    return kind(**{**OPTIONS, **options})


def structure(seed: int = 0, n_atoms: int = 6, periodic: bool = True) -> dict[str, np.ndarray]:
    """Atoms on a jittered grid in a triclinic cell."""
    rng = np.random.default_rng(seed)
    grid = np.array(list(np.ndindex(2, 2, 2)))[:n_atoms] * 1.9
    cell = 3.8 * np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3))
    return {
        "positions": grid + rng.uniform(-0.25, 0.25, (n_atoms, 3)),
        "numbers": np.array([1, 6, 8, 8, 1, 6, 1, 8])[:n_atoms],
        "cell": cell,
        "pbc": np.array([periodic] * 3),
    }


def batch_of(m: Any, *structures: dict[str, np.ndarray]) -> Batch:
    return structure_batch(list(structures), m.r_max)


def evaluate(m: Any, *structures: dict[str, np.ndarray]) -> Any:
    batch = batch_of(m, *structures)
    return m(m.geometry(batch))


def derivatives(m: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Energy, forces and stress."""
    positions = batch.positions.clone().requires_grad_(True)
    strain = torch.zeros_like(batch.cell, requires_grad=True)
    geometry = m.geometry(replace(batch, positions=positions), strain)
    energy = m(geometry).energy
    d_positions, d_strain = torch.autograd.grad(energy.sum(), [positions, strain])
    return energy.detach(), -d_positions, d_strain / geometry.volume.detach()[:, None, None]


def rotation(seed: int = 3) -> np.ndarray:
    """A proper rotation."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix * np.linalg.det(matrix)


def moved(item: dict[str, np.ndarray], matrix: np.ndarray) -> dict[str, np.ndarray]:
    """The structure with positions and cell transformed by ``matrix``."""
    return {
        **item,
        "positions": item["positions"] @ matrix.T,
        "cell": item["cell"] @ matrix.T,
    }
