"""Forces and stress of converged calculations against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from fixed_point_cases import batch_of, make_mode, observe, scaled_model, structure

from fpmace.density_modes.base import DensityMode
from fpmace.models.fixed_point_core import FixedPointCore

CASES = [
    ("affine", "pbc", True),
    ("affine", "slab", False),
    ("mlp", "pbc", True),
    ("mlp", "slab", True),
    ("skip_mlp", "molecule_in_box", True),
    ("mlp", "realspace", False),
    ("many_body", "pbc", False),
    ("many_body", "realspace", False),
]
FIELD = (0.01, -0.02, 0.03)
WEIGHTS = np.array([1.0, -8.0, 8.0, -1.0]) / 12.0
POINTS = np.array([-2.0, -1.0, 1.0, 2.0])


def name(value: object) -> str:
    return {True: "charge", False: "fermi"}.get(value, str(value))  # type: ignore[call-overload]


def tight(constant_charge: bool) -> DensityMode:
    return make_mode(
        "scf",
        constant_charge=constant_charge,
        scf_tolerance=1e-13,
        charge_tolerance=1e-12,
        initial_fermi_level=0.2,
    )


def energy(model: FixedPointCore, atoms: Atoms, mode: DensityMode) -> float:
    return float(observe(model, batch_of(atoms), mode, ("energy",)).energy)


@pytest.mark.parametrize(("rule", "boundary", "constant_charge"), CASES, ids=name)
def test_forces(rule: str, boundary: str, constant_charge: bool) -> None:
    model = scaled_model(rule, boundary, eigenvalue=-0.4)
    atoms = structure(boundary, charge=0.4, field=FIELD)
    mode = tight(constant_charge)
    forces = observe(model, batch_of(atoms), mode).forces
    assert forces is not None
    generator = np.random.default_rng(0)
    for _ in range(2):
        direction = generator.normal(size=(len(atoms), 3))
        values = []
        for point in POINTS:
            moved = atoms.copy()
            moved.positions += 1e-3 * point * direction
            values.append(energy(model, moved, mode))
        slope = float(WEIGHTS @ np.array(values)) / 1e-3
        expected = -float((forces.numpy() * direction).sum())
        assert expected == pytest.approx(slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(
    ("rule", "boundary", "constant_charge"),
    [case for case in CASES if case[1] in ("pbc", "slab")],
    ids=name,
)
def test_stress(rule: str, boundary: str, constant_charge: bool) -> None:
    model = scaled_model(rule, boundary, eigenvalue=-0.4, kspace_window=0.3)
    atoms = structure(boundary, charge=0.4, field=FIELD)
    mode = tight(constant_charge)
    found = observe(model, batch_of(atoms), mode, ("energy", "stress", "virials"))
    assert found.stress is not None
    assert found.virials is not None
    volume = atoms.get_volume()
    torch.testing.assert_close(found.virials, -volume * found.stress)
    torch.testing.assert_close(found.stress, found.stress.mT)
    shapes = [(0, 0), (1, 1), (0, 1)] if boundary == "slab" else [(2, 2), (0, 1), (1, 2)]
    for i, j in shapes:
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5
        strain[j, i] += 0.5
        values = []
        for point in POINTS:
            strained = atoms.copy()
            change = np.eye(3) + 5e-4 * point * strain
            strained.set_cell(atoms.cell @ change, scale_atoms=False)
            strained.positions = atoms.positions @ change
            values.append(energy(model, strained, mode))
        slope = float(WEIGHTS @ np.array(values)) / 5e-4 / volume
        assert float(found.stress[0, i, j]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("boundary", ["pbc", "realspace"])
def test_the_dipole_is_the_derivative_by_the_field_only_without_self_consistency(
    boundary: str,
) -> None:
    """The energy is no variational functional: its field derivative needs the response too."""
    model = scaled_model("affine", boundary, eigenvalue=-0.4)
    atoms = structure(boundary)
    mode = tight(True)
    found = observe(model, batch_of(atoms), mode, ("energy", "polarizability"))
    assert found.polarizability is not None
    slopes = []
    for axis in range(3):
        dipoles = []
        for sign in (1.0, -1.0):
            field = np.zeros(3)
            field[axis] = 1e-3 * sign
            atoms.info["external_field"] = tuple(field)
            dipole = observe(model, batch_of(atoms), mode, ("energy",)).dipole
            assert dipole is not None
            dipoles.append(dipole[0])
        slopes.append(-(dipoles[0] - dipoles[1]) / 2e-3)
    torch.testing.assert_close(
        found.polarizability[0], torch.stack(slopes, dim=1), rtol=1e-6, atol=1e-8
    )
