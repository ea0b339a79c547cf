"""The whole model under rotation, inversion, translation and relabelling, converged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from drawn import rotations, turns
from fixed_point_cases import BOUNDARIES, batch_of, make_mode, observe, scaled_model, structure
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.observables.types import Observables

RULES = ("affine", "mlp", "many_body")
FIELD = (0.02, -0.01, 0.03)


def converged(model: FixedPointCore, atoms: Atoms) -> Observables:
    mode = make_mode("scf", scf_tolerance=1e-12, charge_tolerance=1e-11)
    periodic = bool(atoms.pbc.any())
    outputs = ("energy", "forces", "stress") if periodic else ("energy", "forces")
    return observe(model, batch_of(atoms), mode, outputs)


def system(rule: str, boundary: str, charge: float = 0.3) -> tuple[FixedPointCore, Atoms]:
    seed = 1 if rule == "many_body" and boundary != "slab" else 0
    # Random rules that bend respond little here, so that there is one solution only.
    model = scaled_model(rule, boundary, eigenvalue=-0.2, seed=seed)
    return model, structure(boundary, charge=charge, field=FIELD)


def transformed(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """Everything that is a vector turned: positions, cell, field."""
    turned = atoms.copy()
    turned.set_cell(atoms.cell @ matrix.T, scale_atoms=False)
    turned.positions = atoms.positions @ matrix.T
    turned.info["external_field"] = tuple(matrix @ np.array(atoms.info["external_field"]))
    return turned


def turn_density(density: Tensor, matrix: np.ndarray) -> Tensor:
    """Charges stay, dipoles (y, z, x) turn."""
    turn = torch.from_numpy(matrix)
    dipole = density[:, [3, 1, 2]] @ turn.T
    return torch.cat([density[:, :1], dipole[:, [1, 2, 0]]], dim=1)


def assert_turned(found: Observables, plain: Observables, matrix: np.ndarray) -> None:
    turn = torch.from_numpy(matrix)
    assert plain.forces is not None
    assert plain.density is not None
    assert plain.dipole is not None
    torch.testing.assert_close(found.energy, plain.energy, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.fermi_level, plain.fermi_level, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.forces, plain.forces @ turn.T, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.dipole, plain.dipole @ turn.T, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        found.density, turn_density(plain.density, matrix), rtol=0, atol=1e-8
    )
    if plain.stress is not None:
        torch.testing.assert_close(found.stress, turn @ plain.stress @ turn.T, rtol=0, atol=1e-8)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=2)
@given(data=st.data())
def test_rotation_and_inversion(rule: str, boundary: str, data: st.DataObject) -> None:
    model, atoms = system(rule, boundary)
    plain = converged(model, atoms)
    # The normal of a slab is z.
    rotation = data.draw(turns() if boundary == "slab" else rotations())
    assert_turned(converged(model, transformed(atoms, rotation)), plain, rotation)
    mirror = -np.eye(3)
    assert_turned(converged(model, transformed(atoms, mirror)), plain, mirror)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("rule", RULES)
def test_translation(rule: str, boundary: str) -> None:
    """Without a field and charge a shift changes nothing; with them the level and energy shift."""
    model, atoms = system(rule, boundary, charge=0.0)
    atoms.info["external_field"] = (0.0, 0.0, 0.0)
    plain = converged(model, atoms)
    shift = np.array([0.3, -0.4, 0.5])
    moved = atoms.copy()
    moved.positions += shift
    found = converged(model, moved)
    torch.testing.assert_close(found.energy, plain.energy, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.forces, plain.forces, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.density, plain.density, rtol=0, atol=1e-8)


@pytest.mark.parametrize("boundary", ["pbc", "realspace"])
def test_translation_in_a_field_shifts_the_fermi_level(boundary: str) -> None:
    model, atoms = system("affine", boundary)
    plain = converged(model, atoms)
    shift = np.array([0.3, -0.4, 0.5])
    moved = atoms.copy()
    moved.positions += shift
    found = converged(model, moved)
    work = float(np.dot(FIELD, shift))
    assert plain.fermi_level is not None
    torch.testing.assert_close(found.density, plain.density, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.forces, plain.forces, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.fermi_level, plain.fermi_level - work, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.energy, plain.energy + 0.3 * work, rtol=0, atol=1e-7)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("rule", RULES)
def test_relabelling(rule: str, boundary: str) -> None:
    model, atoms = system(rule, boundary)
    plain = converged(model, atoms)
    order = np.array([4, 0, 5, 2, 1, 3])
    shuffled = atoms[order]
    shuffled.info.update(atoms.info)
    found = converged(model, shuffled)
    assert plain.density is not None
    assert plain.forces is not None
    torch.testing.assert_close(found.energy, plain.energy, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.density, plain.density[order], rtol=0, atol=1e-8)
    torch.testing.assert_close(found.forces, plain.forces[order], rtol=0, atol=1e-7)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("rule", RULES)
def test_a_structure_in_a_batch_is_the_structure_alone(rule: str, boundary: str) -> None:
    model, atoms = system(rule, boundary)
    other = structure(boundary, n_molecules=1, seed=5)
    mode = make_mode("scf", scf_tolerance=1e-12, charge_tolerance=1e-11)
    outputs = ("energy", "forces", "stress") if atoms.pbc.any() else ("energy", "forces")
    together = observe(model, batch_of(other, atoms), mode, outputs)
    alone = converged(model, atoms)
    assert together.forces is not None
    assert together.density is not None
    torch.testing.assert_close(together.energy[1:], alone.energy, rtol=0, atol=1e-8)
    torch.testing.assert_close(together.forces[len(other) :], alone.forces, rtol=0, atol=1e-8)
    torch.testing.assert_close(together.density[len(other) :], alone.density, rtol=0, atol=1e-9)
    if together.stress is not None:
        torch.testing.assert_close(together.stress[1:], alone.stress, rtol=0, atol=1e-9)


def test_periodic_images_of_atoms_are_the_same_atoms() -> None:
    model, atoms = system("mlp", "pbc", charge=0.0)
    atoms.info["external_field"] = (0.0, 0.0, 0.0)
    plain = converged(model, atoms)
    wrapped = atoms.copy()
    wrapped.positions[2] += 2 * wrapped.cell[0] - wrapped.cell[1]
    found = converged(model, wrapped)
    torch.testing.assert_close(found.energy, plain.energy, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.density, plain.density, rtol=0, atol=1e-8)


def test_the_density_is_extensive() -> None:
    """Two cells of a crystal: twice the energy, the same density in both."""
    model, atoms = system("affine", "pbc", charge=0.0)
    atoms.info["external_field"] = (0.0, 0.0, 0.0)
    plain = converged(model, atoms)
    double = atoms.repeat((1, 1, 2))
    double.info.update(atoms.info)
    found = converged(model, double)
    assert plain.density is not None
    torch.testing.assert_close(found.energy, 2 * plain.energy, rtol=0, atol=1e-7)
    expected = plain.density.repeat(2, 1)
    torch.testing.assert_close(found.density, expected, rtol=0, atol=1e-7)


def test_without_the_total_charge_in_the_batch_nothing_is_shared() -> None:
    """The charge of one structure does not reach another."""
    model, atoms = system("affine", "pbc")
    batch = batch_of(atoms, atoms)
    mode = make_mode("scf", charge_tolerance=1e-10)
    charges = torch.tensor([0.3, -0.2], dtype=torch.float64)
    mixed = observe(model, replace(batch, total_charge=charges), mode)
    same = observe(model, batch, mode)
    assert mixed.density is not None
    assert same.density is not None
    torch.testing.assert_close(mixed.density[:6], same.density[:6], rtol=0, atol=1e-9)
    assert float(mixed.density[6:, 0].sum()) == pytest.approx(-0.2, abs=1e-9)
