"""Independent checks: Madelung constant, finite charges, quadrature, large boxes, slabs."""

from __future__ import annotations

from dataclasses import replace
from math import pi, sqrt

import numpy as np
import pytest
import torch
from electrostatics_cases import energy, features, make_model
from torch import Tensor

from fpmace.boundaries import FFF
from fpmace.electrostatics import GTOElectrostatics
from fpmace.electrostatics.gaussian import multipole_norm, receiver_norm
from fpmace.electrostatics.harmonics import solid_harmonics
from fpmace.testing.electrostatics_systems import make_density, make_system, one_graph
from fpmace.units import COULOMB_K


def finite_charges(model: GTOElectrostatics, h: float) -> tuple[Tensor, Tensor]:
    """For every multipole of every atom a set of charges with that moment, exact to O(h^2).

    Returns displacements [n_points, 3] and charges [n_density, n_points].
    """
    corners = (
        h
        * torch.tensor(
            [[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]
        ).double()
    )
    values = solid_harmonics(corners, model.options.density_max_l)
    degree = torch.tensor([0] + [1] * 3 + [2] * 5)[: model.n_density]
    charges = values.clone()
    # Make each set orthogonal to 1 and r^2, so that only the wanted moment is left.
    basis = torch.stack([torch.ones(27).double(), corners.square().sum(1)], dim=1)
    projector = basis @ torch.linalg.pinv(basis)
    charges = torch.where(degree > 0, charges - projector @ charges, charges)
    moments = (charges * values).sum(0)
    charges = charges / moments
    charges[:, 0] = 0.0
    charges[13, 0] = 1.0
    return corners, charges.T


@pytest.mark.parametrize("mode", ["pbc", "realspace", "slab", "molecule_in_box"])
def test_multipoles_are_limits_of_charges(mode: str) -> None:
    """Features of l <= 2 multipoles from charges on small stencils, extrapolated in h."""
    system = make_system(mode, (3,))
    full = make_model(mode, 2, include_field_self_interaction=True)
    plain = make_model(
        mode,
        0,
        feature_max_l=2,
        include_field_self_interaction=True,
    )
    assert plain.kspace_cutoff == full.kspace_cutoff
    density = make_density(full, 3)
    results = []
    for h in (0.08, 0.04, 0.02):
        corners, sets = finite_charges(full, h)
        sites = (system.positions[:, None] + corners).reshape(-1, 3)
        charges = (density @ sets).reshape(-1, 1)
        everything = torch.cat([system.positions, sites])
        values = features(
            plain,
            one_graph(everything, system.cell[0]),
            torch.cat([torch.zeros(3, 1).double(), charges]),
        )
        results.append(values[:3])
    first = (4.0 * results[1] - results[0]) / 3.0
    second = (4.0 * results[2] - results[1]) / 3.0
    extrapolated = (16.0 * second - first) / 15.0
    expected = features(full, system, density)
    scale = float(expected.abs().max())
    assert float((extrapolated - expected).abs().max()) < 1e-8 * scale


@pytest.mark.parametrize("mode", ["pbc", "realspace", "slab", "molecule_in_box"])
def test_receivers_by_quadrature(mode: str) -> None:
    """Integrate the potential over the receiver functions of the definition (Gauss-Hermite)."""
    model = make_model(
        mode,
        2,
        include_field_self_interaction=True,
        quadrupole_feature_corrections=True,
    )
    system = make_system(mode, (2,))
    density = make_density(model, 2)
    if mode == "molecule_in_box":
        density[:, 0] -= density[:, 0].mean()
    plan = system.plan(model)
    expected = plan.potential_features(density)
    nodes, weights = np.polynomial.hermite_e.hermegauss(54 if mode == "realspace" else 30)
    x, w = torch.tensor(nodes), torch.tensor(weights)
    unit = torch.cartesian_prod(x, x, x)
    weight = torch.cartesian_prod(w, w, w).prod(1)
    column = 0
    for ell in range(3):
        for width in model.options.feature_widths:
            offsets = width * unit
            values = plan.potential_at_points(density, system.positions[0] + offsets)
            shape = solid_harmonics(offsets, 2)[:, ell**2 : (ell + 1) ** 2]
            norm = receiver_norm(ell, width) * sqrt((2 * ell + 1) / (4 * pi)) * width**3
            integral = norm * ((weight * values)[:, None] * shape).sum(0)
            found = expected[0, column : column + 2 * ell + 1]
            torch.testing.assert_close(integral, found, rtol=1e-7, atol=1e-6)
            column += 2 * ell + 1


@pytest.mark.parametrize("mode", ["pbc", "realspace"])
def test_poisson_equation(mode: str) -> None:
    model = make_model(mode, 2, kspace_cutoff_factor=0.8)
    system = make_system(mode, (3,))
    density = make_density(model, 3)
    plan = system.plan(model)
    points = 5.0 * torch.rand(4, 3, dtype=torch.float64)

    def potential(p: Tensor) -> Tensor:
        return plan.potential_at_points(density, p).sum()

    def laplacian(p: Tensor) -> Tensor:
        return torch.autograd.functional.hessian(potential, p[None])[0, :, 0].trace()

    curvature = torch.stack([laplacian(p) for p in points])
    charge = plan.density_at_points(density, points)
    if mode == "pbc":
        charge = charge - density[:, 0].sum() / torch.linalg.det(system.cell[0]).abs()
    torch.testing.assert_close(curvature, -COULOMB_K * charge, rtol=1e-6, atol=1e-6)


def test_density_holds_its_moments() -> None:
    """Integrating the density over space gives back charge, dipole and quadrupole."""
    model = make_model("realspace", 2)
    density = make_density(model, 1)
    system = one_graph(torch.zeros(1, 3, dtype=torch.float64), 1.0)
    axis = torch.linspace(-8.0, 8.0, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis, axis)
    values = system.plan(model).density_at_points(density, grid)
    volume = float(axis[1] - axis[0]) ** 3
    moments = (values[:, None] * solid_harmonics(grid, 2)).sum(0) * volume
    torch.testing.assert_close(moments, density[0])
    assert multipole_norm(0, 1.0) == pytest.approx((2 * pi) ** -1.5 * sqrt(4 * pi))


def box_error(length: float, *, exact: bool, charged: bool) -> tuple[float, float]:
    """Deviation of molecule_in_box from open boundaries: energy and largest feature."""
    options = {
        "include_field_self_interaction": True,
        "quadrupole_feature_corrections": exact,
        "kspace_cutoff_factor": 1.6,
    }
    box = make_model("molecule_in_box", 2, **options)
    free = make_model("realspace", 2, **options)
    system = make_system("realspace", (3,))
    density = make_density(box, 3)
    if not charged:
        density[:, 0] -= density[:, 0].mean()
    boxed = one_graph(system.positions, length, FFF)
    de = energy(box, boxed, density) - energy(free, boxed, density)
    dv = features(box, boxed, density) - features(free, boxed, density)
    return float(de.abs().max()), float(dv.abs().max())


def test_widths_in_the_quadratic_correction_improve_charged_features() -> None:
    plain = box_error(20.0, exact=False, charged=True)
    exact = box_error(20.0, exact=True, charged=True)
    assert exact[1] < 0.2 * plain[1]
    assert exact[0] == plain[0]


def test_potential_at_points_agrees_with_potential_at_atoms() -> None:
    for mode in ("pbc", "realspace"):
        model = make_model(mode, 2)
        system = make_system(mode)
        system = replace(system, pbc=torch.zeros_like(system.pbc))
        density = make_density(model, 9)
        plan = system.plan(model)
        at_atoms = plan.potential_at_atoms(density)
        for graph in range(3):
            chosen = system.batch == graph
            values = plan.potential_at_points(density, system.positions[chosen], graph)
            torch.testing.assert_close(values, at_atoms[chosen])
