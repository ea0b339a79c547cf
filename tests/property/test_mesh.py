"""Sums on meshes: their primitives, their accuracy against the direct sums, models with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from electrostatics_cases import MODES
from torch import Tensor

from fpmace.boundaries import FFF, TTF, TTT
from fpmace.density_modes.base import DensityMode
from fpmace.electrostatics import (
    BatchGeometry,
    Electrostatics,
    ElectrostaticsOptions,
    build_electrostatics,
    kspace,
)
from fpmace.electrostatics.auto import AutoElectrostatics
from fpmace.electrostatics.mesh.accuracy import fast_size, force_error
from fpmace.electrostatics.mesh.splines import spline_transform, spline_values
from fpmace.electrostatics.mesh.transfer import Stencil, exponents, gather, spread
from fpmace.errors import ConfigError
from fpmace.observables.predict import predict
from fpmace.parts import import_builtin_parts
from fpmace.registry import PartConfig
from fpmace.testing.block_contract import solved, tiny_model
from fpmace.testing.electrostatics_contract import Subject, check_method, close
from fpmace.testing.electrostatics_systems import (
    System,
    make_density,
    make_system,
    neutral,
    one_graph,
)
from fpmace.testing.model_contract import (
    check_forces,
    check_responses,
    check_stress,
    check_training,
)
from fpmace.testing.systems import atoms_batch, water_box

ACCURACY = 1e-6


@pytest.mark.parametrize("method", MODES)
def test_meshes_keep_the_contract(method: str) -> None:
    check_method(Subject("mesh", ACCURACY, closed_form=ACCURACY), method)


def test_slabs_without_images_keep_the_contract() -> None:
    check_method(Subject({"type": "mesh", "slab": "vacuum"}, ACCURACY), "slab")


@pytest.mark.parametrize("order", [6, 8])
def test_splines_are_a_partition_of_unity_with_the_right_transform(order: int) -> None:
    fraction = torch.rand(7, generator=torch.Generator().manual_seed(0)).double()
    values = spline_values(fraction, order, order)
    torch.testing.assert_close(values[:, 0].sum(-1), torch.ones_like(fraction))
    assert values[:, 1:].sum(-1).abs().max() < 1e-12
    assert (values[:, order] == 0).all()
    x = torch.linspace(0.0, 1.0, 2001, dtype=torch.float64)[:-1] + 0.5 / 2000
    offsets = x[:, None] - torch.arange(1 - order // 2, order // 2 + 1)
    wave = (spline_values(x, order, 0)[:, 0] * torch.cos(1.3 * offsets)).sum() / 2000
    expected = spline_transform(torch.tensor(1.3).double(), order)
    torch.testing.assert_close(wave, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("degree", [0, 2])
def test_spread_and_gather_are_adjoint_and_differentiable_to_any_order(degree: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    shape, graph = (6, 5, 7), torch.tensor([0, 0, 1, 1])
    coordinates, mesh = random(4, 3), random(2, 2 * 6 * 5 * 7)
    values = random(2, 4, len(exponents(degree)))

    def gathered(mesh: Tensor, coordinates: Tensor) -> Tensor:
        return gather(mesh, coordinates, Stencil(coordinates, shape, 8, graph), degree)

    def scattered(values: Tensor, coordinates: Tensor) -> Tensor:
        stencil = Stencil(coordinates, shape, 8, graph)
        return spread(values, coordinates, stencil, degree, mesh.shape[1])

    forth = (gathered(mesh, coordinates) * values).sum()
    torch.testing.assert_close(forth, (scattered(values, coordinates) * mesh).sum())
    for function, first in ((gathered, mesh), (scattered, values)):
        inputs = (first, coordinates)
        torch.autograd.gradcheck(function, inputs, fast_mode=True, check_forward_ad=True)
        torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def make(config: PartConfig, method: str, max_l: int = 1, **options: Any) -> Electrostatics:
    settings = {"density_max_l": max_l, "feature_max_l": max_l, "pbc_handling": method, **options}
    return build_electrostatics(config, ElectrostaticsOptions(**settings))


def water(method: str) -> System:
    """Eight molecules, in a skewed cell where periodic and in vacuum where a slab."""
    atoms = water_box((2, 2, 2))
    positions, cell = torch.tensor(atoms.positions), torch.tensor(np.asarray(atoms.cell))
    if method == "pbc":
        skew = torch.tensor([[1.0, 0.1, 0.0], [0.0, 1.0, 0.05], [0.1, 0.0, 1.0]]).double()
        positions, cell = positions @ skew, cell @ skew
    elif method == "slab":
        cell[2, 2] += 20.0
    return one_graph(positions, cell, {"pbc": TTT, "slab": TTF}.get(method, FFF))


def errors(config: PartConfig, method: str, max_l: int) -> dict[str, float]:
    """Relative deviations (root mean squares) from the direct sums, for random multipoles."""
    own = {"include_energy_self_interaction": True}
    found = [_results(make(name, method, max_l, **own), method) for name in ("direct", config)]
    return {
        name: float((found[1][name] - value).norm() / value.norm())
        for name, value in found[0].items()
    }


def _results(model: Electrostatics, method: str) -> dict[str, Tensor]:
    system = water(method)
    positions = system.positions.requires_grad_()
    density = neutral(system, make_density(model, len(positions)))
    probe = make_density(model, len(positions), seed=2)[:, :1].expand(-1, 3)
    plan = system.plan(model)
    energy = plan.energy(density)
    (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    (curve,) = torch.autograd.grad((slope * probe).sum(), positions)
    return {
        "energy": energy.detach(),
        "forces": slope.detach(),
        "second derivatives": curve,
        "features": plan.potential_features(density).detach(),
        "potentials": plan.potential_at_atoms(density).detach(),
    }


@pytest.mark.parametrize("max_l", [0, 1, 2])
@pytest.mark.parametrize("method", ["pbc", "slab", "realspace"])
def test_default_accuracy(method: str, max_l: int) -> None:
    found = errors("mesh", method, max_l)
    limits = {"energy": 1e-7, "forces": 1e-6, "features": 1e-6, "second derivatives": 1e-5}
    assert all(found[name] < limit for name, limit in limits.items()), found
    assert found["potentials"] < 1e-5, found


@pytest.mark.parametrize("order", [6, 8, 10])
@pytest.mark.parametrize("accuracy", [1e-4, 1e-7])
def test_error_follows_the_estimate(accuracy: float, order: int) -> None:
    config = {"type": "mesh", "accuracy": accuracy, "order": order}
    model = make(config, "pbc")
    estimate = force_error(model.rule.spacing, order, 4.5, 1, model.rule.cutoff)  # type: ignore[attr-defined]
    found = errors(config, "pbc", 1)["forces"]
    assert estimate < accuracy
    assert found < accuracy
    assert found > 1e-3 * estimate, "the estimate is far too careful"


def test_sizes_of_meshes_are_even_and_smooth() -> None:
    assert [fast_size(n) for n in (1.0, 3.0, 7.0, 11.5, 13.0, 61.0)] == [2, 4, 8, 12, 16, 64]


@pytest.mark.parametrize("length", [1.5, 3.0])
def test_cells_smaller_than_the_splines(length: float) -> None:
    positions = torch.tensor([[0.1, 0.2, 0.3], [0.9, 1.0, 0.4]], dtype=torch.float64)
    system = one_graph(positions, length)
    found = []
    for name in ("direct", "mesh"):
        model = make(name, "pbc")
        plan = system.plan(model)
        density = neutral(system, make_density(model, 2))
        found.append((plan.energy(density), plan.potential_features(density)))
    for direct, mesh in zip(*found, strict=True):
        close("a small cell", "pbc", mesh, direct, ACCURACY)


@pytest.mark.parametrize("method", ["pbc", "slab", "molecule_in_box", "realspace"])
def test_potential_and_density_at_points(method: str) -> None:
    system = make_system(method, (3, 4))
    points = 12.0 * torch.rand(9, 3, generator=torch.Generator().manual_seed(1)).double() - 3.0
    many = {"direct": 1, "mesh": 15000 if method == "realspace" else 1}
    found = []
    for name in ("direct", "mesh"):
        plan = system.plan(make(name, method))
        density = make_density(plan.layout, 7)  # type: ignore[arg-type]
        places = points.repeat(many[name], 1)
        potential = plan.potential_at_points(density, places, 1)[:9]
        found.append((potential, plan.density_at_points(density, places, 1)[:9]))
    for direct, mesh in zip(*found, strict=True):
        close("values at points", method, mesh, direct, 1e-5)


def test_few_points_far_from_a_cluster_need_no_mesh_around_them() -> None:
    system = make_system("realspace", (4,))
    points = torch.tensor([[1e5, 0.0, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    found = []
    for name in ("direct", "mesh"):
        plan = system.plan(make(name, "realspace"))
        density = make_density(plan.layout, 4)  # type: ignore[arg-type]
        found.append(plan.potential_at_points(density, points))
    torch.testing.assert_close(*found, rtol=1e-12, atol=0.0)


def test_slabs_without_images_are_the_limit_of_much_vacuum() -> None:
    own = {"include_energy_self_interaction": True, "include_field_self_interaction": True}
    vacuum = make({"type": "mesh", "slab": "vacuum"}, "slab", **own)
    direct = make("direct", "slab", **own)
    small, large = water("slab"), water("slab")
    large.cell[0, 2, 2] = 60.0
    density = neutral(small, make_density(direct, 24))
    plan = small.plan(vacuum)
    expected = large.plan(direct)
    close("energy", "slab", plan.energy(density), expected.energy(density), ACCURACY)
    fields = [item.potential_features(density)[:, 2:] for item in (plan, expected)]
    close("fields", "slab", *fields, ACCURACY)


def mode(constant_charge: bool) -> DensityMode:
    return solved(constant_charge=constant_charge)


def crystal() -> Atoms:
    atoms = water_box((2, 1, 1))
    atoms.info["external_field"] = (0.0, 0.0, 0.0)
    return atoms


@pytest.mark.parametrize("constant_charge", [True, False])
@pytest.mark.parametrize("method", ["pbc", "realspace"])
def test_models_with_meshes_are_the_models_with_direct_sums(
    method: str, constant_charge: bool
) -> None:
    batch = atoms_batch([water_box((2, 1, 1)), water_box((2, 2, 1))], 3.0)
    found = []
    for name in ("direct", "mesh"):
        model = tiny_model(electrostatics=name, pbc_handling=method)
        outputs = ("forces", "stress") if method == "pbc" else ("forces",)
        found.append(
            predict(model, batch, mode=mode(constant_charge), outputs=outputs, create_graph=True)
        )
        weights = list(model.update_rule.parameters())
        loss = found[-1].forces.square().sum()
        found[-1] = replace(found[-1], stress=None) if method != "pbc" else found[-1]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    direct, slopes, mesh, other = found
    for what in ("energy", "forces", "density", "stress"):
        expected = getattr(direct, what)
        if expected is not None:
            close(what, method, getattr(mesh, what), expected, ACCURACY)
    close("gradients of a loss on forces", method, other, slopes, 1e-5)


def test_forces_stress_training_and_responses_by_finite_differences() -> None:
    import_builtin_parts()
    model = tiny_model(electrostatics="mesh", pbc_handling="pbc")
    for check in (check_forces, check_stress, check_training, check_responses):
        check(model)


def test_order_is_even() -> None:
    with pytest.raises(ConfigError, match=r"order: needs 6, 8 or 10, got 7"):
        make({"type": "mesh", "order": 7}, "pbc")


def test_auto_sums_small_structures_directly_and_large_ones_on_meshes() -> None:
    """The rule looks at each structure alone; a batch of both gives what each sum gives."""
    small, large = water_box((2, 1, 1)), water_box((4, 4, 4))
    batch = atoms_batch([small, large, small], 2.0)
    places = (batch.positions, batch.cell, batch.pbc, batch.batch, batch.ptr)
    auto = make("auto", "realspace")
    assert isinstance(auto, AutoElectrostatics)
    plan = auto.plan(*places)
    assert plan.summations == ("direct", "mesh", "direct")
    assert not plan.has_dense
    density = make_density(auto, batch.n_atoms)
    chosen = batch.batch != 1
    for name, tolerance in (("direct", 1e-15), ("mesh", ACCURACY)):
        other = make(name, "realspace").plan(*places)
        found, expected = plan.potential_features(density), other.potential_features(density)
        close(f"small structures, {name}", "open", found[chosen], expected[chosen], tolerance)
        close(f"all structures, {name}", "open", found, expected, ACCURACY)
        close("energies", "open", plan.energy(density), other.energy(density), ACCURACY)


@pytest.mark.parametrize(("method", "shape"), [("pbc", (16, 8, 4)), ("realspace", (4, 4, 4))])
def test_auto_takes_meshes_from_about_a_thousand_and_a_few_hundred_atoms(
    method: str, shape: tuple[int, int, int]
) -> None:
    auto = make("auto", method)
    assert isinstance(auto, AutoElectrostatics)
    for atoms, expected in ((water_box((2, 2, 2)), False), (water_box(shape), True)):
        n = len(atoms)
        places = torch.tensor(atoms.positions), torch.tensor(np.asarray(atoms.cell))[None]
        flags = torch.ones(1, 3, dtype=torch.bool)
        rows = torch.zeros(n, dtype=torch.int64), torch.tensor([0, n])
        geometry = BatchGeometry.read(method, *places, flags, *rows)
        assert auto.prefers_mesh(geometry, 0) is expected


def test_phases_beyond_a_limit_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _results(make("direct", "pbc"), "pbc")
    monkeypatch.setattr(kspace, "PHASE_MEMORY", 1 << 14)
    found = _results(make("direct", "pbc"), "pbc")
    for name, value in expected.items():
        close(name, "pbc", found[name], value, 1e-12)
