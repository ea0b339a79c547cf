"""Quadrupoles in density and field features, through the whole model, at every boundary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.observables.predict import predict
from fpmace.observables.types import Observables
from fpmace.registry import build
from fpmace.scf.options import ScfOptions
from fpmace.testing.block_contract import (
    affine_error,
    check_symmetry_and_forces,
    density_rotation,
    gradient_error,
    orthogonal_matrix,
    solved,
    tiny_model,
)
from fpmace.testing.systems import atoms_batch, water_box

QUADRUPOLES: dict[str, Any] = {
    "atomic_multipoles_max_l": 2,
    "field_feature_max_l": 2,
    "field_feature_norms": [8.0, 8.0, 1.0, 1.0, 0.3, 0.3],
    "hidden_irreps": "2x0e+2x1o+2x2e",
    "max_ell": 2,
    "kspace_cutoff_factor": 0.6,
}
AFFINE = {"type": "OneBodyVariableUpdate"}
PERCEPTRON = {
    "type": "OneBodyVariableUpdate",
    "nonlinearity_cls": {"type": "MLPNonLinearity", "hidden_sizes": [4]},
}
MANY_BODY = {"type": "ManyBodyUpdate", "radial_sizes": [4], "correlation": 2}
QUADRATIC = {"type": "StrictQuadraticFieldEnergyReadout", "n_channels": 2}
CHAIN = {"radial_sizes": [4], "nonlinearity_cls": PERCEPTRON["nonlinearity_cls"]}
READOUTS = (
    QUADRATIC,
    {"type": "OneBodyMLPFieldReadout", "hidden_sizes": [4]},
    {"type": "ManyBodyChargesReadout", **CHAIN},
    {"type": "ManyBodyChargesFieldReadout", **CHAIN},
)
BOUNDARIES = ("pbc", "slab", "molecule_in_box", "realspace", "mixed_periodic", "auto")
FLAGS = {"pbc": True, "slab": [True, True, False], "molecule_in_box": False, "realspace": False}
STRAIN_STEP = 1e-4
MOVE_STEP = 5e-4


def structure(kind: str) -> Atoms:
    """A distorted water molecule, or two, in a cell that fits the boundary condition."""
    atoms = water_box((1, 1, 1), seed=2)
    atoms.positions += 0.05 * np.random.default_rng(1).normal(size=(3, 3))
    cells = {
        "pbc": [[5.0, 0.6, 0.0], [0.0, 5.3, 0.3], [0.2, 0.0, 4.8]],
        "slab": [[5.0, 0.6, 0.0], [0.0, 5.3, 0.0], [0.0, 0.0, 9.0]],
    }
    atoms.set_cell(cells.get(kind, np.eye(3) * 9.0))
    atoms.pbc = FLAGS[kind]
    return atoms


def structures(boundary: str) -> list[Atoms]:
    kinds = {
        "mixed_periodic": ("pbc", "slab", "molecule_in_box"),
        "auto": ("pbc", "slab", "realspace"),
    }
    return [structure(kind) for kind in kinds.get(boundary, (boundary,))]


def moved(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """Positions and cell under the linear map x' = x matrix^T."""
    copy = atoms.copy()
    copy.set_cell(np.asarray(atoms.cell) @ matrix.T)
    copy.positions = atoms.positions @ matrix.T
    return copy


def turn(atoms: Atoms, seed: int) -> np.ndarray:
    """An improper rotation that leaves the normal of a slab where it is."""
    if tuple(atoms.pbc) != (True, True, False):
        return orthogonal_matrix(seed)
    angle = 0.7 + seed
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, -1.0]])


def make(boundary: str, update: dict[str, Any] = AFFINE, **options: Any) -> FixedPointCore:
    settings = {"fixedpoint_update_config": update, "field_readout_config": QUADRATIC}
    return tiny_model(**{**QUADRUPOLES, "pbc_handling": boundary, **settings, **options})


def run(model: FixedPointCore, frames: list[Atoms], *outputs: str) -> Observables:
    batch = atoms_batch(frames, model.r_max)
    # A random non-linear rule need not be able to reach a given charge.
    mode = solved(constant_charge=model.update_rule.is_affine)
    return predict(model, batch, mode=mode, outputs=outputs)


def close(value: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(float(expected.abs().max()), 1e-3)
    assert float((value - expected).abs().max()) / scale < tolerance


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("update", [AFFINE, MANY_BODY], ids=lambda item: item["type"])
def test_rotation_forces_and_stress(boundary: str, update: dict[str, Any]) -> None:
    model = make(boundary, update)
    rng = np.random.default_rng(0)
    for seed, atoms in enumerate(structures(boundary)):
        matrix = turn(atoms, seed)
        direction, strain = rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
        strain = strain + strain.T
        frames = [atoms, moved(atoms, matrix)]
        if (
            model.update_rule.is_affine
        ):  # at constant charge: neutral, so that places do not matter
            frames[1].positions += [0.3, -0.4, 0.5]
        for step in (-2, -1, 1, 2):
            frames += [atoms.copy(), moved(atoms, np.eye(3) + step * STRAIN_STEP * strain)]
            frames[-2].positions += step * MOVE_STEP * direction
        found = run(model, frames, "forces", "stress")
        assert found.scf is not None
        assert found.forces is not None
        assert found.stress is not None
        assert found.density is not None
        assert float(found.density[:3, 4:].abs().max()) > 1e-4
        rotation = density_rotation(matrix, 2)
        close(found.energy[1], found.energy[0], 1e-9)
        close(found.density[3:6], found.density[:3] @ rotation.T, 1e-9)
        matrix_tensor = torch.as_tensor(matrix)
        close(found.forces[3:6], found.forces[:3] @ matrix_tensor.T, 1e-8)
        close(found.stress[1], matrix_tensor @ found.stress[0] @ matrix_tensor.T, 1e-8)
        expected = slope(found.energy[2::2], MOVE_STEP)
        close(-(found.forces[:3] * torch.as_tensor(direction)).sum(), expected, 1e-6)
        expected = slope(found.energy[3::2], STRAIN_STEP) / atoms.get_volume()
        close((found.stress[0] * torch.as_tensor(strain)).sum(), expected, 1e-6)


def slope(energy: Tensor, step: float) -> Tensor:
    """Derivative from values at -2, -1, 1 and 2 steps."""
    return (energy[0] - 8.0 * energy[1] + 8.0 * energy[2] - energy[3]) / (12.0 * step)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("update", [AFFINE, PERCEPTRON], ids=["affine", "perceptron"])
def test_parameter_derivatives_of_energy_and_forces(boundary: str, update: dict[str, Any]) -> None:
    model = make(boundary, update)
    batch = atoms_batch(structures(boundary), model.r_max)
    scf = ScfOptions(scf_tolerance=1e-12, num_scf_steps=300, constant_charge=False)
    mode = build("training_mode", "implicit", scf=scf)
    assert gradient_error(model, batch, mode) < 1e-6


@pytest.mark.parametrize("readout", READOUTS, ids=lambda item: item["type"])
@pytest.mark.parametrize("update", [AFFINE, MANY_BODY], ids=lambda item: item["type"])
def test_all_readouts_take_quadrupoles(update: dict[str, Any], readout: dict[str, Any]) -> None:
    model = make("realspace", update, field_readout_config=readout)
    check_symmetry_and_forces(model)
    assert (affine_error(model) < 1e-12) == model.update_rule.is_affine


@pytest.mark.parametrize(("density_l", "feature_l"), [(0, 2), (2, 0), (1, 2), (2, 1), (0, 1)])
def test_density_and_features_of_different_degree(density_l: int, feature_l: int) -> None:
    model = make(
        "realspace",
        atomic_multipoles_max_l=density_l,
        field_feature_max_l=feature_l,
        field_feature_norms=None,
    )
    check_symmetry_and_forces(model)


def test_quadrupoles_change_with_the_field_gradient() -> None:
    model = make("realspace")
    far = structure("realspace")
    near = far + Atoms("H", positions=[far.positions[0] + [0.0, 0.0, 3.5]])
    alone, beside = run(model, [far]), run(model, [near])
    assert alone.density is not None
    assert beside.density is not None
    change = (beside.density[:3] - alone.density)[:, 4:].abs().max()
    assert float(change) > 1e-4
