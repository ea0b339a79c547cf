"""What every way to attach derivatives has to do, as functions that tests call.

One of one's own (kind ``differentiation``) is checked by :func:`check_differentiation`. The maps
are small, non-linear and made of three parameters. Up to the order to which the method says that
it is exact, its derivatives must agree with those through an unrolled loop and with finite
differences, which are compared with each other too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fpmace.differentiation.base import Differentiation
from fpmace.registry import PartConfig, build
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState
from fpmace.testing.toy_maps import random_toy, run, toy_problem

Parameters = tuple[float, float, float]
POINT: Parameters = (0.9, -0.3, 0.4)
STEP = 1e-3
"""Step of the finite differences (fourth order)."""

CHARGES = (None, [0.4, -0.2])
"""Constant Fermi level, and constant charge."""


def check_differentiation(method: PartConfig) -> None:
    """Check values, derivatives up to the order declared, and graphs that are left out.

    Args:
        method: as a mode's ``differentiation`` names it.

    Raises:
        AssertionError: saying what is wrong.

    Example:
        >>> check_differentiation("implicit")
    """
    made: Differentiation = build("differentiation", method)
    exact = 2 if made.exact_order is None else made.exact_order
    for charges in CHARGES:
        for cheap_dense in (True, False):
            check_values(made, charges, cheap_dense)
            check_left_out(made, charges, cheap_dense)
            for order in range(1, exact + 1):
                check_derivatives(made, order, charges, cheap_dense)


def check_values(made: Differentiation, charges: list[float] | None, cheap_dense: bool) -> None:
    """The density and the level stay what they were; order 0 attaches nothing."""
    problem, state = _solved(torch.tensor(POINT, dtype=torch.float64), charges, cheap_dense)
    for order in (0, 1, 2):
        found = made.reattach(problem, state, order)
        error = float((found.density - state.density).detach().abs().max())
        error += float((found.fermi_level - state.fermi_level).detach().abs().max())
        assert error < 1e-9, f"order {order} changes the solution by {error:.1e}"
    bare = made.reattach(problem, state, 0)
    assert not bare.density.requires_grad, "order 0 keeps a graph"
    assert not bare.fermi_level.requires_grad, "order 0 keeps a graph"


def check_left_out(made: Differentiation, charges: list[float] | None, cheap_dense: bool) -> None:
    """Graphs outside ``where`` get no derivatives; the others get theirs."""
    leaf = torch.tensor(POINT, dtype=torch.float64, requires_grad=True)
    problem, state = _solved(leaf, charges, cheap_dense)
    where = torch.tensor([True, False])
    part = made.reattach(problem, state, 1, where)
    full = made.reattach(problem, state, 1)
    atoms = [problem.batch == graph for graph in (0, 1)]
    kept, wanted = (_gradient(item.density[atoms[0]].sum(), leaf) for item in (part, full))
    _close("a graph beside one that is left out", kept, wanted, 1e-9)
    # What is left of it is the density's identity, so that the map may still be attached.
    dropped = _gradient(part.density[atoms[1]].sum(), leaf)
    _close("a graph that is left out", dropped, torch.zeros_like(dropped), 1e-12)


def check_derivatives(
    made: Differentiation, order: int, charges: list[float] | None, cheap_dense: bool
) -> None:
    """Derivatives of that order: the method, the unrolled loop and finite differences agree."""

    def attached(leaf: Tensor) -> Tensor:
        problem, state = _solved(leaf, charges, cheap_dense)
        return _measure(made.reattach(problem, state, order))

    def unrolled(leaf: Tensor) -> Tensor:
        problem, state = _solved(leaf, charges, cheap_dense)
        return _measure(_loop(problem, state))

    found = {"method": _derivative(attached, order), "unrolled": _derivative(unrolled, order)}
    found["finite differences"] = _differences(attached, order)
    names = list(found)
    for first in range(3):
        for second in range(first):
            a, b = names[first], names[second]
            _close(f"order {order}: {a} and {b}", found[a], found[b], 1e-6)


def _solved(
    leaf: Tensor, charges: list[float] | None, cheap_dense: bool
) -> tuple[FixedPointProblem, ScfState]:
    """The problem attached to three parameters, and its solution to the last digits."""
    toys = []
    for n_atoms in (2, 3):
        toy = random_toy(n_atoms, seed=n_atoms, bend=0.3)
        ramp = torch.linspace(-1.0, 1.0, 4 * n_atoms, dtype=torch.float64)
        jacobian = toy.jacobian * leaf[0]
        response = toy.response * (1.0 + 0.3 * leaf[1] * leaf[0])
        constant = toy.constant + 0.5 * torch.sin(leaf[2] * ramp) + 0.2 * leaf[1] ** 2
        toys.append(replace(toy, jacobian=jacobian, response=response, constant=constant))
    problem = toy_problem(toys, charges, cheap_dense=cheap_dense)
    found = run(problem, "newton_krylov", level=0.2, scf_tolerance=1e-14, charge_tolerance=1e-12)
    assert float(found.density_change.max()) < 1e-13, "the map of the check is not solved"
    return problem, ScfState(found.density, found.fermi_level)


def _loop(problem: FixedPointProblem, state: ScfState) -> ScfState:
    """Plain iteration from the solution, the Fermi level following the charge."""
    density, level = state.density, state.fermi_level
    for _ in range(45):
        if problem.target_charge is not None:
            _, _, chi = problem.evaluate_with_fukui(density, level, create_graph=True)
            total = problem.sum(chi)
        new, _ = problem.evaluate(density, problem.spread(level))
        if problem.target_charge is not None:
            level = level - problem.charge_error(new) / total
            new, _ = problem.evaluate(density, problem.spread(level))
        density = new
    return ScfState(density, level)


def _measure(state: ScfState) -> Tensor:
    """A number that depends on density and level, non-linearly."""
    weights = torch.cos(torch.arange(state.density.numel(), dtype=torch.float64))
    density = state.density.flatten()
    return (weights * (density + density**2)).sum() + state.fermi_level.square().sum()


def _derivative(function: Callable[[Tensor], Tensor], order: int) -> Tensor:
    """Gradient [3], or the gradient of a component of it along a direction."""
    leaf = torch.tensor(POINT, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=order > 1)
    if order == 1:
        return first
    return _gradient((first * torch.tensor([0.3, -1.0, 0.7])).sum(), leaf)


def _differences(function: Callable[[Tensor], Tensor], order: int) -> Tensor:
    """The same by differences of values, or of first derivatives."""
    columns = []
    direction = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)
    for axis in range(3):
        values = []
        for step in (-2, -1, 1, 2):
            leaf = torch.tensor(POINT, dtype=torch.float64)
            leaf[axis] += step * STEP
            leaf.requires_grad_()
            value = function(leaf)
            if order > 1:
                value = (_gradient(value, leaf) * direction).sum()
            values.append(value.detach())
        a, b, c, d = values
        columns.append((a - 8.0 * b + 8.0 * c - d) / (12.0 * STEP))
    return torch.stack(columns)


def _gradient(value: Tensor, leaf: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (found,) = torch.autograd.grad(value, leaf, retain_graph=True, materialize_grads=True)
    return found


def _close(what: str, value: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((value - expected).abs().max())
    size = max(1.0, float(expected.abs().max()))
    assert error <= tolerance * size, f"{what}: differ by {error:.1e} of {size:.1e}"
