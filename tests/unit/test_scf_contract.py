"""The shipped contracts of solvers and differentiation: the package keeps them, and they bite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from fpmace.differentiation.implicit import ImplicitDifferentiation
from fpmace.registry import PartConfig, names, register_differentiation, register_scf_solver
from fpmace.registry import unregister as forget
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.solvers.base import Iterate, Report, Solver, evaluate_at
from fpmace.scf.state import ScfState
from fpmace.testing.differentiation_contract import check_differentiation
from fpmace.testing.solver_contract import (
    SOLVER_CHECKS,
    check_batch_independence,
    check_finds_the_fixed_point,
    check_limits_and_inputs,
    check_scf_solver,
)
from fpmace.testing.toy_maps import random_toy, run, toy_problem

PASSIVE = {"cg", "newton_cg"}
"""Solvers of problems with a convex energy, which these maps do not have."""

SOLVERS: list[PartConfig] = [*sorted(set(names("scf_solver")) - PASSIVE)]
SOLVERS += [
    {"type": "affine", "max_dense_size": 0},
    {"type": "newton_krylov", "max_dense_size": 0},
]
SOLVERS += [{"type": "anderson", "preconditioner": text} for text in ("none", "response")]

METHODS: list[PartConfig] = [*names("differentiation")]
METHODS += [{"type": "implicit", "newton_correction": True}]
METHODS += [{"type": "implicit", "newton_correction": True, "linearised": True}]


def name(part: object) -> str:
    return (
        "-".join(map(str, part.values()))
        if isinstance(part, dict)
        else getattr(part, "__name__", str(part))
    )


@pytest.mark.parametrize("check", SOLVER_CHECKS, ids=name)
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_the_solvers_of_the_package(
    solver: PartConfig, check: Callable[[PartConfig], None]
) -> None:
    check(solver)


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_the_differentiation_of_the_package(method: PartConfig) -> None:
    check_differentiation(method)


@dataclass(frozen=True)
class _At:
    density: Tensor
    fermi_level: Tensor


class Picard(Solver[_At, Iterate]):
    """What an outside author may write: a damped step, the level by the response at the start."""

    def __init__(self, *, fault: str = "none") -> None:
        self.fault = fault

    def start(
        self, problem: FixedPointProblem, density: Tensor, fermi_level: Tensor, options: ScfOptions
    ) -> _At:
        return _At(density, fermi_level)

    def evaluate(
        self, problem: FixedPointProblem, state: _At, *, last: bool
    ) -> tuple[Report, Iterate]:
        report, found = evaluate_at(problem, state.density, state.fermi_level)
        if self.fault == "claims":
            report = replace(report, density_change=0.01 * report.density_change)
        return report, found

    def advance(
        self, problem: FixedPointProblem, state: _At, found: Iterate, active: Tensor
    ) -> _At:
        step = 0.4 * found.residual
        level = torch.zeros_like(found.fermi_level)
        if problem.target_charge is not None:
            t = problem.linearisation(found.density, found.fermi_level).fermi_response
            total = problem.sum(t[:, 0])
            missing = -0.4 * (found.charge_error + problem.charge(found.residual))
            level = missing / torch.where(total != 0, total, torch.inf)
            step = step + t * problem.spread(level).unsqueeze(-1)
        elif self.fault == "level":
            level = level + 0.1 * problem.mean_abs(found.residual)
        moving = problem.spread(active).unsqueeze(-1)
        if self.fault == "couples":
            level = level + 1e-3 * level.mean()
            step = step + 1e-3 * step.mean()
        if self.fault == "writes":
            return _At(found.density.add_(torch.where(moving, step, 0.0)), found.fermi_level)
        density = found.density + torch.where(moving, step, 0.0)
        return _At(density, found.fermi_level + torch.where(active, level, 0.0))


@pytest.fixture
def picard() -> Iterator[None]:
    register_scf_solver("picard")(Picard)
    yield
    forget("scf_solver", "picard")


@pytest.mark.usefixtures("picard")
def test_a_solver_of_a_users_own_is_checked_and_used_by_name() -> None:
    check_scf_solver("picard")
    result = run(toy_problem([random_toy(bend=0.2)], [0.3]), "picard")
    assert result.converged.all()
    assert result.solver == ["picard"]


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("claims", check_finds_the_fixed_point, "off the fixed point"),
        ("couples", check_batch_independence, "the batch changes"),
        ("level", check_finds_the_fixed_point, "held was moved"),
        ("writes", check_limits_and_inputs, "the start was overwritten"),
    ],
)
@pytest.mark.usefixtures("picard")
def test_faults_are_found(fault: str, check: Callable[[PartConfig], None], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check({"type": "picard", "fault": fault})


class Wrong(ImplicitDifferentiation):
    """One correction where two are needed."""

    def reattach(
        self,
        problem: FixedPointProblem,
        solution: ScfState,
        order: int,
        where: Tensor | None = None,
    ) -> ScfState:
        return super().reattach(problem, solution, min(order, 1), where)


def test_a_differentiation_that_promises_too_much_is_found() -> None:
    register_differentiation("wrong")(Wrong)
    try:
        with pytest.raises(AssertionError, match="order 2"):
            check_differentiation("wrong")
    finally:
        forget("differentiation", "wrong")
