"""The default solver: picks one by what the update rule promises, and says which it used."""

from __future__ import annotations

from typing import Any, NoReturn

from fpmace.registry import register_scf_solver
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.solvers.anderson import Anderson
from fpmace.scf.solvers.base import Solver
from fpmace.scf.solvers.newton_krylov import NewtonKrylov, Response


@register_scf_solver("auto")
class Auto(Solver):
    """One linear solve where the rule is affine; else Anderson, then Newton-Krylov if needed.

    A graph that Anderson has not brought to convergence in ``anderson_steps`` passes goes on
    with Newton-Krylov from there, one that it lost or gave up starts afresh with it;
    ``ScfResult.solver`` names what gave each graph's answer.
    """

    def __init__(self, *, anderson_steps: int = 25) -> None:
        self.anderson_steps = anderson_steps

    def phases(self, problem: FixedPointProblem, options: ScfOptions) -> list[tuple[Solver, int]]:
        limit = options.num_scf_steps - 1
        if problem.is_affine:
            return [(Response(), limit)]
        first = min(self.anderson_steps, limit)
        rest = limit - first
        return [(Anderson(), first)] + ([(NewtonKrylov(), rest)] if rest > 0 else [])

    def start(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError("auto runs through its phases")

    def evaluate(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError("auto runs through its phases")

    def advance(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError("auto runs through its phases")
