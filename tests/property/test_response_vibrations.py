"""Hessians of local models, harmonic vibrations and infrared intensities."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from ase import Atoms, units
from ase.vibrations import VibrationsData
from small_models import ELEMENTS, SMALL

from fpmace.data.batch import Batch
from fpmace.models.mace import MACE
from fpmace.observables.predict import predict
from fpmace.observables.response import compute_response, rigid_motions
from fpmace.observables.vibrations import vibrations
from fpmace.registry import build
from fpmace.testing.systems import atoms_batch, random_model, water_box


def local_model() -> MACE:
    torch.manual_seed(0)
    model: MACE = build("model", {"type": "MACE", **SMALL, **ELEMENTS, "avg_num_neighbors": 3.0})
    return model


def two_structures() -> Batch:
    return atoms_batch([water_box((1, 1, 1), pbc=False), water_box((1, 1, 2), pbc=True)], 3.0)


def test_hessian_of_a_local_model() -> None:
    model, batch = local_model(), two_structures()
    found = compute_response(model, batch, ["hessian", "vibrations"])
    assert found.hessian is not None
    direction = torch.sin(torch.arange(3.0 * batch.n_atoms, dtype=torch.float64)).reshape(-1, 3)
    h = 3e-4

    def forces(step: float) -> torch.Tensor:
        moved = dataclasses.replace(batch, positions=batch.positions + step * direction)
        return predict(model, moved, outputs=("forces",)).forces

    numerical = (forces(-2 * h) - 8 * forces(-h) + 8 * forces(h) - forces(2 * h)) / (12 * h)
    parts = direction.split(batch.atoms_per_graph.tolist())
    pairs = zip(found.hessian, parts, strict=True)
    analytic = torch.cat([-(square @ part.flatten()).reshape(-1, 3) for square, part in pairs])
    scale = float(numerical.abs().max())
    torch.testing.assert_close(analytic, numerical, rtol=0, atol=1e-7 * scale)
    assert [len(item.frequencies) for item in found.vibrations] == [3, 15]
    assert found.vibrations[0].intensities is None


def test_diatomic_molecule_in_closed_form() -> None:
    """k = 3 eV/A^2 between 1 and 16 amu, with charges of +-0.4 e."""
    k, masses = 3.0, torch.tensor([1.0, 16.0], dtype=torch.float64)
    axis = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3.0
    block = k * torch.outer(axis, axis)
    hessian = torch.cat([torch.cat([block, -block], 1), torch.cat([-block, block], 1)])
    positions = torch.stack([0.0 * axis, 1.3 * axis])
    born = torch.stack([0.4 * torch.eye(3), -0.4 * torch.eye(3)]).double()
    found = vibrations(hessian, masses, positions, born_charges=born, remove="all")
    reduced = 16.0 / 17.0
    omega = (k * units._e * 1e20 / (reduced * units._amu)) ** 0.5
    expected = omega / (2 * torch.pi * units._c * 100)
    assert found.frequencies.tolist() == pytest.approx([expected], rel=1e-10)
    assert found.reduced_masses.tolist() == pytest.approx([16.0 * 17.0 / (16.0**2 + 1.0)])
    debye_squared = 42.255 / units.Debye**2
    assert found.intensities is not None
    assert found.intensities.tolist() == pytest.approx([debye_squared * 0.16 / reduced], rel=1e-4)


def test_frequencies_and_modes_agree_with_ase() -> None:
    atoms = water_box((1, 1, 1), pbc=False)
    root = torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hessian = root + root.T
    masses = torch.from_numpy(atoms.get_masses())
    found = vibrations(hessian, masses, torch.from_numpy(atoms.positions))
    reference = VibrationsData.from_2d(atoms, hessian.numpy())
    theirs = torch.from_numpy(reference.get_frequencies().copy())
    signed = theirs.real - theirs.imag.abs()
    torch.testing.assert_close(found.frequencies, signed, rtol=1e-7, atol=1e-6)
    own, other = found.modes[-1], torch.from_numpy(reference.get_modes()[-1])
    torch.testing.assert_close(own.abs(), other.abs(), rtol=1e-7, atol=1e-9)


def test_number_of_rigid_motions() -> None:
    atoms = Atoms("HOH", positions=[[0, 0, -0.96], [0, 0, 0], [0, 0, 0.96]])
    hessian = torch.eye(9, dtype=torch.float64)
    masses, positions = torch.ones(3), torch.from_numpy(atoms.positions)
    assert len(vibrations(hessian, masses, positions, remove="all").frequencies) == 4
    assert len(vibrations(hessian, masses, positions, remove="translations").frequencies) == 6
    assert len(vibrations(hessian, masses, positions).frequencies) == 9
    bent = positions + torch.tensor([[0.5], [0.0], [0.5]]) * torch.tensor([1.0, 0.0, 0.0])
    assert len(vibrations(hessian, masses, bent, remove="all").frequencies) == 3
    one = vibrations(hessian[:3, :3], masses[:1], positions[:1], remove="all")
    assert one.frequencies.shape == (0,)


def test_rigid_motions_follow_boundary_and_field() -> None:
    batch = two_structures()
    assert rigid_motions(random_model(**SMALL, pbc_handling="auto"), batch) == [
        "all",
        "translations",
    ]
    in_a_lattice = random_model(**SMALL, pbc_handling="pbc")
    assert rigid_motions(in_a_lattice, batch) == ["translations", "translations"]
    batch.external_field[0, 0] = 0.1
    model = random_model(**SMALL, pbc_handling="auto")
    assert rigid_motions(model, batch) == ["translations", "translations"]
    assert rigid_motions(model, batch, constant_charge=False) == ["none", "translations"]
