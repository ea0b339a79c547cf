"""What every SCF solver has to do, as functions that tests call.

A solver of one's own (kind ``scf_solver``) is checked by :func:`check_scf_solver`, or by the
checks of :data:`SOLVER_CHECKS` one at a time; the solvers of the package run exactly these. They
work on batches of small affine and non-linear maps. A solver may refuse kinds of maps with a
:class:`~fpmace.errors.ConfigError`; what it accepts it has to solve, or to report as unsolved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fpmace.errors import ConfigError
from fpmace.registry import PartConfig
from fpmace.scf.driver import make_solver, solve
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfResult, ScfState, ScfStatus
from fpmace.testing.toy_maps import Toy, random_toy, run, toy_problem

Charges = list[float] | None
"""Total charge of each graph, or None at constant Fermi level."""

BENDS = (0.0, 0.2)
"""Affine maps and non-linear ones."""

ENDED = (ScfStatus.MAX_STEPS, ScfStatus.DIVERGED, ScfStatus.STALLED, ScfStatus.NO_SOLUTION)
"""How a graph may end that has no solution."""


def check_scf_solver(solver: PartConfig) -> None:
    """Run all checks on a solver.

    Args:
        solver: as ``scf: {solver: ...}`` names it.

    Raises:
        AssertionError: saying what is wrong.

    Example:
        >>> check_scf_solver("linear")
    """
    for check in SOLVER_CHECKS:
        check(solver)


def check_finds_the_fixed_point(solver: PartConfig) -> None:
    """Well-behaved maps are solved, at constant charge and at constant level, in both dtypes."""
    for toys, charges in _cases(solver):
        for dtype in (torch.float64, torch.float32):
            problem = toy_problem([_cast(toy, dtype) for toy in toys], charges)
            result = run(problem, solver, level=0.3)
            _is_solution(problem, result, 0.3)
            assert result.density.dtype == dtype, "the density changed its dtype"
            assert not result.density.requires_grad, "a graph was kept under no_grad"


def check_batch_independence(solver: PartConfig) -> None:
    """A graph in a batch gets the answer, and the number of steps, that it gets alone."""
    for toys, charges in _cases(solver):
        problem = toy_problem(toys, charges)
        result = run(problem, solver)
        for index in range(len(toys)):
            _same_alone(toys, charges, index, problem, result, solver)


def check_frozen_when_converged(solver: PartConfig) -> None:
    """A graph that has converged does not change while others go on."""
    for bend in _accepted(solver):
        quick = random_toy(2, seed=1, eigenvalues=(-0.05, 0.05), bend=0.05 * bend)
        slow = random_toy(4, seed=2, eigenvalues=(-0.9, 0.85), bend=0.25 * bend)
        problem = toy_problem([quick, slow], None)
        result = run(problem, solver, history="full_history", scf_tolerance=1e-8)
        assert result.history is not None
        done = int(result.n_steps[0])
        answer = result.density[problem.batch == 0]
        for step in result.history.densities[done:]:
            assert torch.equal(step[problem.batch == 0], answer), "a converged graph was moved"


def check_bad_numbers_stay_alone(solver: PartConfig) -> None:
    """A graph without numbers is reported as such; the others do not notice it."""
    for bend in _accepted(solver):
        for charges in (None, [0.4] * 3):
            toys = [random_toy(n, seed=n, bend=bend) for n in (3, 2, 4)]
            toys[1].constant[2] = torch.nan
            problem = toy_problem(toys, charges)
            result = run(problem, solver)
            assert int(result.status[1]) == ScfStatus.NONFINITE, (
                f"a map that gives NaN ended as {ScfStatus(int(result.status[1])).name}"
            )
            for index in (0, 2):
                _same_alone(toys, charges, index, problem, result, solver)


def check_reports_what_has_no_solution(solver: PartConfig) -> None:
    """Where no solution exists the graph is not called converged; the others are."""
    good = random_toy(3, seed=9)
    stiff = random_toy(3, seed=8, response=0.0)
    problem = toy_problem([good, stiff], [0.0, 5.0])
    if not _accepts(solver, problem):
        return
    result = run(problem, solver)
    assert int(result.status[1]) in ENDED, "a charge out of reach counts as converged"
    # The level of the other graph among the unknowns changes the order of operations.
    _same_alone([good, stiff], [0.0, 5.0], 0, problem, result, solver, tolerance=1e-10)


def check_status_is_honest(solver: PartConfig) -> None:
    """On difficult maps ``CONVERGED`` means that the density is a fixed point."""
    hard: list[tuple[tuple[float, float], float]] = [((-14.5, 0.4), 0.2), ((-2.0, 3.1), 0.0)]
    for bend in _accepted(solver):
        for eigenvalues, charge in hard:
            toy = random_toy(4, eigenvalues=eigenvalues, seed=4, bend=bend)
            for charges in (None, [charge]):
                problem = toy_problem([toy], charges)
                result = run(problem, solver)
                assert bool(torch.isfinite(result.density).all()), "the answer is not finite"
                if bool(result.converged.all()):
                    _is_solution(problem, result, 0.0)


def check_limits_and_inputs(solver: PartConfig) -> None:
    """The limit on steps is kept, and the start that was handed in is not written to."""
    for toys, charges in _cases(solver):
        problem = toy_problem(toys, charges)
        levels = problem.local_density.new_zeros(problem.n_graphs)
        start = ScfState(problem.local_density.clone(), levels)
        scf = ScfOptions(
            solver=solver,
            num_scf_steps=4,
            scf_tolerance=1e-13,
            on_failure="ignore",
            constant_charge=charges is not None,
        )
        with torch.no_grad():
            result = solve(problem, start, scf)
        assert int(result.n_steps.max()) <= 3, "more than num_scf_steps - 1 passes"
        assert torch.equal(start.density, problem.local_density), "the start was overwritten"
        assert not bool(levels.any()), "the start was overwritten"


def check_derivatives_of_the_passes(solver: PartConfig) -> None:
    """A solver that says it is differentiable gives the derivative of the answer."""
    if not make_solver(ScfOptions(solver=solver)).differentiable:
        return
    for toys, charges in _cases(solver):

        def total(scale: Tensor, toys: list[Toy] = toys, given: Charges = charges) -> Tensor:
            moved = [replace(toy, constant=scale * toy.constant) for toy in toys]
            problem = toy_problem(moved, given)
            scf = ScfOptions(
                solver=solver,
                scf_tolerance=1e-12,
                num_scf_steps=400,
                constant_charge=given is not None,
            )
            levels = problem.local_density.new_full((problem.n_graphs,), 0.3)
            result = solve(problem, ScfState(problem.local_density, levels), scf)
            return result.density.square().sum()

        one = torch.ones((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(total(one), one)
        with torch.no_grad():
            values = [total(one + step) for step in (-1e-3, 1e-3)]
        numerical = (values[1] - values[0]) / 2e-3
        error = float((slope - numerical).abs() / numerical.abs())
        assert error < 1e-5, f"derivatives through the passes are off by {error:.1e}"


SOLVER_CHECKS: tuple[Callable[[PartConfig], None], ...] = (
    check_finds_the_fixed_point,
    check_batch_independence,
    check_frozen_when_converged,
    check_bad_numbers_stay_alone,
    check_reports_what_has_no_solution,
    check_status_is_honest,
    check_limits_and_inputs,
    check_derivatives_of_the_passes,
)


def _accepts(solver: PartConfig, problem: FixedPointProblem) -> bool:
    options = ScfOptions(solver=solver)
    try:
        make_solver(options).phases(problem, options)
    except ConfigError:
        return False
    return True


def _accepted(solver: PartConfig) -> list[float]:
    """The kinds of maps that the solver takes."""
    bends = [
        bend for bend in BENDS if _accepts(solver, toy_problem([random_toy(bend=bend)], None))
    ]
    assert bends, "the solver refuses affine and non-linear maps alike"
    return bends


def _cases(solver: PartConfig) -> Iterator[tuple[list[Toy], Charges]]:
    """Batches of three graphs that any solver can do, at constant level and constant charge."""
    for bend in _accepted(solver):
        toys = [
            random_toy(2, seed=1, bend=bend),
            random_toy(5, seed=3, bend=2.0 * bend, eigenvalues=(-1.5, 0.3)),
            random_toy(3, seed=5, bend=0.5 * bend),
        ]
        for charges in (None, [0.1, 0.0, -0.5]):
            yield toys, charges


def _cast(toy: Toy, dtype: torch.dtype) -> Toy:
    return replace(
        toy,
        jacobian=toy.jacobian.to(dtype),
        response=toy.response.to(dtype),
        constant=toy.constant.to(dtype),
    )


def _is_solution(problem: FixedPointProblem, result: ScfResult, level: float) -> None:
    tolerance = 1e-8 if result.density.dtype == torch.float64 else 1e-3
    for graph, status in enumerate(result.status.tolist()):
        assert status == ScfStatus.CONVERGED, f"graph {graph}: {result.describe(graph)}"
    with torch.no_grad():
        new, _ = problem.evaluate(result.density, problem.spread(result.fermi_level))
    error = float((new - result.density).abs().max())
    assert error < tolerance, f"the answer is off the fixed point by {error:.1e}"
    if problem.target_charge is None:
        assert bool((result.fermi_level == level).all()), "a level that is held was moved"
    else:
        error = float(problem.charge_error(result.density).abs().max())
        assert error < tolerance, f"the total charge is off by {error:.1e}"


def _same_alone(
    toys: Sequence[Toy],
    charges: Sequence[float] | None,
    index: int,
    problem: FixedPointProblem,
    result: ScfResult,
    solver: PartConfig,
    tolerance: float = 1e-12,
) -> None:
    """Compare a graph of a batch with itself alone."""
    alone = run(toy_problem([toys[index]], None if charges is None else [charges[index]]), solver)
    assert int(alone.status[0]) == int(result.status[index]), "the batch changes the status"
    assert int(alone.n_steps[0]) == int(result.n_steps[index]), "the batch changes the steps"
    error = float((result.density[problem.batch == index] - alone.density).abs().max())
    assert error <= tolerance, f"the batch changes the answer by {error:.1e}"
