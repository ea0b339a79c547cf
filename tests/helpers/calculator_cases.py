"""Small models and structures for the calculator and evaluation tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from ase import Atoms
from small_models import ELEMENTS
from torch import nn

from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.registry import build
from fpmace.testing.systems import atoms_batch, random_model, scale_response, water_box

SMALL: dict[str, Any] = {
    "hidden_irreps": "4x0e+4x1o",
    "max_ell": 2,
    "correlation": 2,
    "MLP_irreps": "4x0e",
    "r_max": 3.5,
    "radial_MLP": [8],
    "num_bessel": 4,
    "kspace_cutoff_factor": 1.0,
    "kspace_window": 0.3,
}
NON_AFFINE = {
    "type": "OneBodyVariableUpdate",
    "potential_embedding_cls": "BiasedLinearPotentialEmbedding",
    "nonlinearity_cls": "MLPNonLinearity",
}


def water_row(n: int = 2, *, pbc: Any = False) -> Atoms:
    """A row of water molecules; without periodicity there is no cell."""
    atoms = water_box((n, 1, 1), pbc=pbc)
    if not atoms.pbc.any():
        atoms.cell = None
    return atoms


@cache
def affine_model() -> FixedPointCore:
    """Affine update rule; the response has the extreme eigenvalue -0.5."""
    model = random_model(**SMALL)
    scale_response(model, atoms_batch([water_row()], SMALL["r_max"]), -0.5)
    return model


@cache
def gentle_model() -> FixedPointCore:
    """Non-affine update rule of weak response, for Anderson and Newton."""
    model = random_model(**SMALL, fixedpoint_update_config=NON_AFFINE)
    scale_response(model, atoms_batch([water_row()], SMALL["r_max"]), -0.5)
    return model


@cache
def local_model() -> nn.Module:
    """A ScaleShiftMACE with random weights."""
    options = {k: v for k, v in SMALL.items() if not k.startswith("kspace")}
    model: nn.Module = build(
        "model",
        {
            "type": "ScaleShiftMACE",
            **ELEMENTS,
            "avg_num_neighbors": 10.0,
            **options,
        },
    )
    return model


def vibration(atoms: Atoms, n: int, *, step: float = 0.15, seed: int = 0) -> list[Atoms]:
    """A smooth trajectory: two harmonic modes of random shape, ``step`` radians apart."""
    rng = np.random.default_rng(seed)
    modes = 0.02 * rng.normal(size=(4, len(atoms), 3))
    frames = []
    for t in step * np.arange(n):
        frame = atoms.copy()
        frame.positions += modes[0] * np.cos(t) + modes[1] * np.sin(t)
        frame.positions += modes[2] * np.cos(0.4 * t) + modes[3] * np.sin(0.4 * t)
        frames.append(frame)
    return frames


def numerical_forces(atoms: Atoms, indices: list[tuple[int, int]], h: float = 1e-3) -> np.ndarray:
    """Forces by fourth-order differences of the energy for (atom, axis) pairs."""
    return np.array([_slope(atoms, atom, axis, h) for atom, axis in indices])


def _slope(atoms: Atoms, atom: int, axis: int, h: float) -> float:
    total = 0.0
    for shift, weight in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)):
        moved = atoms.copy()
        moved.calc = atoms.calc
        moved.positions[atom, axis] += shift * h
        total += weight * moved.get_potential_energy()
    return -total / (12.0 * h)


def numerical_stress(atoms: Atoms, h: float = 1e-4) -> np.ndarray:
    """xx and yz components of the stress by fourth-order differences of the energy."""
    found = []
    for i, j in ((0, 0), (1, 2)):
        total = 0.0
        for shift, weight in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)):
            strain = np.zeros((3, 3))
            strain[i, j] += 0.5 * shift * h
            strain[j, i] += 0.5 * shift * h
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            total += weight * moved.get_potential_energy()
        derivative = total / (12.0 * h)
        found.append(derivative / atoms.get_volume())
    return np.array(found)
