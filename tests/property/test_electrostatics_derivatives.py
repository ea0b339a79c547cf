"""Derivatives by positions, strain and density in every boundary mode, also at r -> 0."""

from __future__ import annotations

from dataclasses import replace

import torch
from electrostatics_cases import energy, make_model
from torch import Tensor

from fpmace.testing.electrostatics_systems import make_density, make_system, one_graph

STEP = 1e-4


def scalar(model, system, density) -> Tensor:
    """Energy plus a non-linear function of all other outputs."""
    plan = system.plan(model)
    features = plan.potential_features(density)
    potential = plan.potential_at_atoms(density)
    return plan.energy(density).sum() + 0.01 * (features**2).sum() + potential.sin().sum()


def test_coincident_atoms_have_finite_derivatives() -> None:
    """Open boundaries have no singularity: two atoms at one place, to second order."""
    model = make_model("realspace", 2)
    positions = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    density = make_density(model, 2)
    system = one_graph(positions, 1.0)
    (gradient,) = torch.autograd.grad(scalar(model, system, density), positions, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), positions)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(second).all()
    near = scalar(model, one_graph(positions.detach() + 1e-5, 1.0), density)
    torch.testing.assert_close(near, scalar(model, system, density))


def test_padding_and_empty_reciprocal_space_keep_derivatives_finite() -> None:
    model = make_model("pbc", 1, kspace_cutoff_factor=0.4)
    system = make_system("pbc", (1, 4, 2))
    small = replace(system, cell=system.cell * torch.tensor([0.1, 1.0, 1.0])[:, None, None])
    strain = torch.zeros(3, 3, 3, dtype=torch.float64, requires_grad=True)
    density = make_density(model, 7)
    value = scalar(model, small.strained(strain), density)
    (gradient,) = torch.autograd.grad(value, strain, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), strain)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(second).all()


def largest_second_difference(window: float, n_steps: int) -> float:
    """Of the energy along an expansion by 8 % in the given number of steps."""
    model = make_model("pbc", 1, kspace_cutoff_factor=0.8, kspace_window=window)
    system = make_system("pbc", (4,))
    density = make_density(model, 4)
    identity = torch.eye(3, dtype=torch.float64)[None]
    strains = torch.linspace(0.0, 0.08, n_steps + 1, dtype=torch.float64)
    path = [energy(model, system.strained(x * identity), density)[0] for x in strains]
    return float(torch.stack(path).diff(n=2).abs().max())


def test_window_makes_the_energy_smooth_along_a_strain_path() -> None:
    """Second differences fall with the square of the step unless the energy jumps."""
    assert largest_second_difference(0.0, 400) > 0.8 * largest_second_difference(0.0, 200)
    smooth = largest_second_difference(0.2, 400)
    assert smooth < 0.27 * largest_second_difference(0.2, 200)
    assert largest_second_difference(0.0, 400) > 100.0 * smooth


def test_window_zero_and_converged_window_agree() -> None:
    sharp = make_model("pbc", 1, kspace_cutoff_factor=1.6)
    smooth = make_model("pbc", 1, kspace_cutoff_factor=1.6, kspace_window=0.1)
    system = make_system("pbc")
    density = make_density(sharp, 9)
    torch.testing.assert_close(
        energy(smooth, system, density), energy(sharp, system, density), rtol=1e-4, atol=1e-4
    )
