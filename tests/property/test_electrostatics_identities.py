"""Exact identities: symmetry, batching, adjoint, energy against potential, choice of cell."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from electrostatics_cases import energy, features, make_model
from torch import Tensor

from fpmace.electrostatics.harmonics import solid_harmonics
from fpmace.testing.electrostatics_systems import make_density, make_system


def representation(rotation: Tensor, n_copies: int) -> Tensor:
    """How a rotation acts on l = 0, 1, 2 components, ``n_copies`` of each l, [n, n]."""
    points = torch.randn(20, 3, dtype=torch.float64)
    before, after = solid_harmonics(points, 2), solid_harmonics(points @ rotation.T, 2)
    action = torch.linalg.lstsq(before, after).solution.T
    blocks = [action[ell**2 : (ell + 1) ** 2, ell**2 : (ell + 1) ** 2] for ell in range(3)]
    return torch.block_diag(*[block for block in blocks for _ in range(n_copies)])


@pytest.mark.parametrize("max_l", [0, 1, 2])
def test_external_potential_is_the_derivative_of_the_field_energy(max_l: int) -> None:
    model, system = make_model("pbc", max_l), make_system("pbc")
    density = make_density(model, 9).requires_grad_()
    field, level = torch.randn(3, 3).double(), torch.randn(3).double()
    dipole = model.dipole(system.positions, density, system.batch, 3)
    charge = torch.zeros(3).double().index_add(0, system.batch, density[:, 0])
    (derivative,) = torch.autograd.grad((field * dipole).sum() + (level * charge).sum(), density)
    found = model.external_potential(system.positions, system.batch, field, level)
    torch.testing.assert_close(found, derivative)


@pytest.mark.parametrize("inversion", [False, True])
@pytest.mark.parametrize("mode", ["pbc", "realspace", "molecule_in_box"])
def test_rotation_and_inversion(mode: str, inversion: bool) -> None:
    model = make_model(mode, 2)
    system = make_system(mode)
    density = make_density(model, 9)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    rotation = rotation * torch.linalg.det(rotation) * (-1.0 if inversion else 1.0)
    rotated = replace(
        system, positions=system.positions @ rotation.T, cell=system.cell @ rotation.T
    )
    turned = density @ representation(rotation, 1).T
    expected = features(model, system, density) @ representation(rotation, 2).T
    torch.testing.assert_close(features(model, rotated, turned), expected)
    torch.testing.assert_close(energy(model, rotated, turned), energy(model, system, density))


@pytest.mark.parametrize("mode", ["pbc", "realspace"])
def test_translation_of_charged_graphs(mode: str) -> None:
    model = make_model(mode, 2)
    system = make_system(mode)
    density = make_density(model, 9)
    moved = replace(system, positions=system.positions + torch.tensor([1.0, -2.0, 0.7]))
    torch.testing.assert_close(features(model, moved, density), features(model, system, density))


def test_default_dtype_does_not_matter() -> None:
    system = make_system("auto")
    results = []
    for dtype in (torch.float32, torch.float16):
        torch.set_default_dtype(dtype)
        try:
            model = make_model("auto", 2)
            density = make_density(model, 9)
            plan = system.plan(model)
            results.append((plan.potential_features(density), plan.potential_at_atoms(density)))
        finally:
            torch.set_default_dtype(torch.float32)
    for first, second in zip(*results, strict=True):
        assert first.dtype == torch.float64
        assert torch.equal(first, second)


def test_functional_transforms_pass_through() -> None:
    model = make_model("auto", 1)
    system = make_system("auto")
    plan = system.plan(model)
    density = make_density(model, 9)
    directions = torch.randn(2, *density.shape, dtype=torch.float64)

    def tangent(direction: Tensor) -> Tensor:
        return torch.func.jvp(lambda q: plan.potential_features(q), (density,), (direction,))[1]

    stacked = torch.func.vmap(tangent)(directions)
    for direction, value in zip(directions, stacked, strict=True):
        torch.testing.assert_close(value, plan.potential_features(direction))
    _, pull = torch.func.vjp(lambda q: plan.potential_features(q), density)
    probe = torch.randn(9, model.n_features, dtype=torch.float64)
    torch.testing.assert_close(pull(probe)[0], plan.potential_features_transpose(probe))
