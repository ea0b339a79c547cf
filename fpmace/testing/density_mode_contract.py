"""What every density mode has to do, as functions that tests call.

A mode of one's own (kind ``training_mode``) is checked by :func:`check_density_mode` on small
non-linear maps, at constant charge and at constant Fermi level.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fpmace.density_modes.base import DensityMode, Start
from fpmace.errors import ConfigError
from fpmace.registry import PartConfig, build
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState
from fpmace.testing.toy_maps import random_toy, toy_problem

CHARGES = (None, [0.4, -0.2])
"""Constant Fermi level, and constant charge."""

STEP = 1e-3
"""Step of the finite differences (fourth order)."""


def check_density_mode(mode: PartConfig) -> None:
    """Check what a mode finds, its derivative, and how it takes a start.

    Args:
        mode: as ``fixed_point_training_options`` names it.

    Raises:
        AssertionError: saying what is wrong.

    Example:
        >>> check_density_mode("implicit")
    """
    for charges in CHARGES:
        made: DensityMode = build("training_mode", mode, scf=_settings(charges))
        assert made.constant_charge == (charges is not None) or made.scf is None
        _check_solution(made, charges)
        _check_derivative(made, charges)
        _check_start(made, charges)


def _settings(charges: list[float] | None) -> ScfOptions:
    return ScfOptions(
        scf_tolerance=1e-12,
        charge_tolerance=1e-11,
        num_scf_steps=200,
        mixing_parameter=0.5,
        constant_charge=charges is not None,
        on_failure="raise",
    )


def _problem(scale: Tensor, charges: list[float] | None) -> FixedPointProblem:
    """A problem that depends on a number; 1 for the map as it is."""
    toys = [random_toy(2, seed=1, bend=0.2), random_toy(3, seed=2, bend=0.2)]
    for toy in toys:
        toy.constant = toy.constant * scale
    return toy_problem(toys, charges)


def _reference(problem: FixedPointProblem) -> ScfState:
    density = 0.1 * torch.ones_like(problem.local_density)
    return ScfState(density, torch.full_like(problem.charge(density), 0.3).detach())


def _check_solution(made: DensityMode, charges: list[float] | None) -> None:
    """What is called a solution is one; features are those of the density; no graph at order 0."""
    problem = _problem(torch.ones((), dtype=torch.float64), charges)
    found = made.run(problem, _reference(problem), order=0)
    name = type(made).__name__
    assert not found.density.requires_grad, f"{name} attaches derivatives at order 0"
    assert found.density.shape == problem.local_density.shape, f"{name}: shape of the density"
    if not made.solves:
        return
    new, _ = problem.evaluate(found.density, problem.spread(found.fermi_level))
    error = float((new - found.density).abs().max())
    assert error < 1e-9, f"{name} says that it solves, residual {error:.1e}"
    error = float(problem.charge_error(found.density).abs().max())
    assert error < 1e-9, f"{name}: charge error {error:.1e}"
    assert found.scf is not None, f"{name} solves, but gives no result of the solve"
    assert bool(found.scf.converged.all()), f"{name}: not converged"


def _check_derivative(made: DensityMode, charges: list[float] | None) -> None:
    """The derivative of density and level by a parameter of the map is that of the numbers."""

    def value(scale: Tensor, order: int) -> Tensor:
        problem = _problem(scale, charges)
        found = made.run(problem, _reference(problem), order=order)
        weights = torch.linspace(-1.0, 1.0, found.density.numel(), dtype=torch.float64)
        return (found.density.flatten() * weights).sum() + found.fermi_level.sum()

    leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
    at_leaf = value(leaf, 1)
    assert at_leaf.requires_grad, f"{type(made).__name__} attaches no derivatives at order 1"
    (slope,) = torch.autograd.grad(at_leaf, leaf)
    expected = _difference(lambda step: float(value((leaf + step).detach(), 0)))
    assert abs(float(slope) - expected) < 1e-6 * (1.0 + abs(expected)), (
        f"{type(made).__name__}: derivative {float(slope):.9g}, by differences {expected:.9g}"
    )


def _check_start(made: DensityMode, charges: list[float] | None) -> None:
    """A start changes no solution, and at the solution nothing is left to do; or it is refused."""
    problem = _problem(torch.ones((), dtype=torch.float64), charges)
    reference = _reference(problem)
    cold = made.run(problem, reference, order=0)
    state = ScfState(cold.density - problem.local_density, cold.fermi_level)
    try:
        warm = made.run(problem, reference, order=0, start=Start(state, above_local=True))
    except ConfigError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert "start" in refusal, f"a start is refused without naming it: {refusal}"
        return
    change = float((warm.density - cold.density).abs().max())
    if made.solves:
        assert change < 1e-9, (
            f"{type(made).__name__}: the start changes the solution by {change:.1e}"
        )
    if made.solves and warm.scf is not None and cold.scf is not None:
        steps, before = int(warm.scf.n_steps.max()), int(cold.scf.n_steps.max())
        assert steps <= before, f"{steps} steps from the solution, {before} from a fresh start"


def _difference(value: Callable[[float], float]) -> float:
    points = ((-2.0, 1.0), (-1.0, -8.0), (1.0, 8.0), (2.0, -1.0))
    return sum(weight * value(STEP * point) for point, weight in points) / (12.0 * STEP)
