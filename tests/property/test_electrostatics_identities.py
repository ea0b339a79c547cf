"""Exact identities: symmetry, batching, adjoint, energy against potential, choice of cell."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from electrostatics_cases import (
    MODES,
    energy,
    features,
    make_density,
    make_model,
    make_system,
    one_graph,
)
from torch import Tensor

from fpmace.electrostatics.gaussian import degree_of_components
from fpmace.electrostatics.harmonics import solid_harmonics
from fpmace.electrostatics.plan import make_padding


def representation(rotation: Tensor, n_copies: int) -> Tensor:
    """How a rotation acts on l = 0, 1, 2 components, ``n_copies`` of each l, [n, n]."""
    points = torch.randn(20, 3, dtype=torch.float64)
    before, after = solid_harmonics(points, 2), solid_harmonics(points @ rotation.T, 2)
    action = torch.linalg.lstsq(before, after).solution.T
    blocks = [action[ell**2 : (ell + 1) ** 2, ell**2 : (ell + 1) ** 2] for ell in range(3)]
    return torch.block_diag(*[block for block in blocks for _ in range(n_copies)])


@pytest.mark.parametrize("max_l", [0, 1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_batch_equals_single_graphs(mode: str, max_l: int) -> None:
    model = make_model(mode, max_l)
    system = make_system(mode)
    density = make_density(model, 9)
    together = features(model, system, density)
    energies = energy(model, system, density)
    potentials = system.plan(model).potential_at_atoms(density)
    for g in range(3):
        chosen = system.batch == g
        alone = one_graph(system.positions[chosen], system.cell[g], system.pbc[g].tolist())
        plan = alone.plan(model)
        torch.testing.assert_close(plan.potential_features(density[chosen]), together[chosen])
        torch.testing.assert_close(plan.energy(density[chosen])[0], energies[g])
        torch.testing.assert_close(plan.potential_at_atoms(density[chosen]), potentials[chosen])


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_energy_is_half_density_times_potential(mode: str, own: bool) -> None:
    """Receivers of the density's own width see dE/dq up to a factor that depends on l alone."""
    model = make_model(
        mode,
        2,
        feature_widths=(1.0,),
        include_energy_self_interaction=own,
        include_field_self_interaction=own,
    )
    system = make_system(mode)
    density = make_density(model, 9).requires_grad_()
    total = energy(model, system, density)
    (derivative,) = torch.autograd.grad(total.sum(), density)
    degrees = degree_of_components(2)
    scale = model.feature_scale * torch.tensor([(1.0, 1.0, 3.0)[ell] for ell in degrees])
    potential = features(model, system, density) / scale
    torch.testing.assert_close(derivative, potential)
    half = 0.5 * (density * potential).sum(1)
    torch.testing.assert_close(torch.zeros(3).double().index_add(0, system.batch, half), total)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_conjugate_potential_is_the_derivative_of_the_energy(mode: str, own: bool) -> None:
    model = make_model(mode, 2, include_energy_self_interaction=own)
    system = make_system(mode)
    density = make_density(model, 9).requires_grad_()
    positions = system.positions.clone().requires_grad_()
    plan = replace(system, positions=positions).plan(model)
    total = plan.energy(density)
    (derivative,) = torch.autograd.grad(total.sum(), density, retain_graph=True)
    potential = plan.conjugate_potential(density)
    torch.testing.assert_close(potential, derivative)
    (forces,) = torch.autograd.grad(total.sum(), positions, retain_graph=True)
    (by_potential,) = torch.autograd.grad((0.5 * density * potential).sum(), positions)
    torch.testing.assert_close(by_potential, forces)
    padding = make_padding(system.ptr.tolist(), None, torch.device("cpu"))
    matrix = plan.conjugate_dense()
    torch.testing.assert_close(matrix, matrix.transpose(1, 2))
    product = torch.bmm(matrix, padding.pad(density).flatten(1)[..., None])
    torch.testing.assert_close(padding.unpad(product.view(3, plan.geometry.n_max, -1)), potential)


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


@pytest.mark.parametrize("max_l", [0, 1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_transpose_and_dense_operator(mode: str, max_l: int) -> None:
    model = make_model(mode, max_l, feature_max_l=min(max_l + 1, 2))
    system = make_system(mode)
    plan = system.plan(model)
    density = make_density(model, 9)
    values = plan.potential_features(density)
    probe = torch.randn(values.shape, dtype=torch.float64)
    adjoint = plan.potential_features_transpose(probe)
    torch.testing.assert_close((probe * values).sum(), (adjoint * density).sum())
    padding = make_padding(system.ptr.tolist(), None, torch.device("cpu"))
    operator = plan.dense_features()
    product = torch.bmm(operator, padding.pad(density).flatten(1)[..., None])
    torch.testing.assert_close(padding.unpad(product.view(3, plan.geometry.n_max, -1)), values)


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


@pytest.mark.parametrize("mode", MODES)
def test_translation_of_neutral_graphs(mode: str) -> None:
    """Energies of neutral graphs do not know the origin; the gauge of slab potentials does."""
    model = make_model(mode, 2)
    system = make_system(mode)
    density = make_density(model, 9)
    counts = torch.bincount(system.batch)
    mean = torch.zeros(3).double().index_add(0, system.batch, density[:, 0]) / counts
    density[:, 0] -= mean[system.batch]
    moved = replace(system, positions=system.positions + torch.tensor([1.0, -2.0, 0.7]))
    torch.testing.assert_close(energy(model, moved, density), energy(model, system, density))
    n_scalar = 2
    torch.testing.assert_close(
        features(model, moved, density)[:, n_scalar:],
        features(model, system, density)[:, n_scalar:],
    )


@pytest.mark.parametrize("mode", ["pbc", "realspace"])
def test_translation_of_charged_graphs(mode: str) -> None:
    model = make_model(mode, 2)
    system = make_system(mode)
    density = make_density(model, 9)
    moved = replace(system, positions=system.positions + torch.tensor([1.0, -2.0, 0.7]))
    torch.testing.assert_close(features(model, moved, density), features(model, system, density))


def test_permutation_of_atoms() -> None:
    model = make_model("pbc", 2)
    system = make_system("pbc", (5,))
    density = make_density(model, 5)
    order = torch.randperm(5)
    shuffled = replace(system, positions=system.positions[order])
    torch.testing.assert_close(
        features(model, shuffled, density[order]), features(model, system, density)[order]
    )


def test_other_cell_of_the_same_crystal() -> None:
    """Skewed, left-handed and doubled cells, and atoms moved by lattice vectors."""
    model = make_model("pbc", 2)
    system = make_system("pbc", (4,))
    density = make_density(model, 4)
    expected = energy(model, system, density)
    expected_features = features(model, system, density)
    skew = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]).double()
    swap = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).double()
    shifts = torch.tensor([[0, 1, 0], [2, 0, -1], [0, 0, 0], [-1, 1, 1]]).double()
    for change in (skew, swap):
        moved = system.positions + shifts @ system.cell[0]
        other = replace(system, positions=moved, cell=(change @ system.cell[0])[None])
        torch.testing.assert_close(energy(model, other, density), expected)
        torch.testing.assert_close(features(model, other, density), expected_features)
    double = torch.diag(torch.tensor([1.0, 2.0, 1.0])).double() @ system.cell[0]
    twice = one_graph(torch.cat([system.positions, system.positions + system.cell[0, 1]]), double)
    torch.testing.assert_close(energy(model, twice, density.repeat(2, 1)), 2.0 * expected)


def test_float32_follows_float64() -> None:
    for mode in MODES:
        model = make_model(mode, 2)
        system = make_system(mode)
        density = make_density(model, 9)
        single = replace(system, positions=system.positions.float(), cell=system.cell.float())
        values = features(model, single, density.float())
        assert values.dtype == torch.float32
        expected = features(model, system, density)
        assert float((values - expected).abs().max()) < 1e-4 * float(expected.abs().max())


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
