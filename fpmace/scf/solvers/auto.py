"""Plans of solvers: the one solve of affine maps, and the default choice for a problem."""

from __future__ import annotations

from typing import Annotated

from fpmace.annotations import Count, Doc
from fpmace.errors import ConfigError
from fpmace.registry import build, register_scf_solver
from fpmace.scf.jacobian_solve import DENSE_SIZE
from fpmace.scf.options import DenseSize, LinearIterations, LinearTolerance, ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.solvers.anderson import Anderson
from fpmace.scf.solvers.base import Phase, SolvePlan
from fpmace.scf.solvers.newton_krylov import NewtonKrylov


@register_scf_solver("response")
@register_scf_solver("affine")
class Affine(SolvePlan):
    """One linear solve with the Jacobian of the map, exact for affine update rules.

    It is the Newton step, solved tightly; a second one corrects what rounding left.
    """

    def __init__(
        self,
        *,
        linear_tolerance: LinearTolerance = 1e-7,
        max_linear_iterations: LinearIterations = 200,
        max_dense_size: DenseSize = DENSE_SIZE,
    ) -> None:
        self._newton = NewtonKrylov(
            linear_tolerance=linear_tolerance,
            max_linear_iterations=max_linear_iterations,
            max_dense_size=max_dense_size,
            patience=3,
        )

    def phases(self, problem: FixedPointProblem, options: ScfOptions) -> list[Phase]:
        if not problem.is_affine:
            raise ConfigError(
                "scf.solver: affine (also named response) needs an update rule that is affine in "
                "the field features, and this one is not; use auto, anderson or newton_krylov"
            )
        return [Phase(self._newton, options.num_scf_steps - 1, "affine")]


@register_scf_solver("newton_cg")
class NewtonCG(SolvePlan):
    """Newton's method for rules that are passive but not affine: symmetric positive solves.

    The energy is convex, so that there is exactly one solution; steps that increase the residual
    are taken back and damped, as in ``newton_krylov``.
    """

    def __init__(
        self,
        *,
        linear_tolerance: LinearTolerance = 1e-3,
        max_linear_iterations: LinearIterations = 200,
        max_dense_size: DenseSize = DENSE_SIZE,
    ) -> None:
        self._newton = NewtonKrylov(
            linear_tolerance=linear_tolerance,
            max_linear_iterations=max_linear_iterations,
            max_dense_size=max_dense_size,
        )

    def phases(self, problem: FixedPointProblem, options: ScfOptions) -> list[Phase]:
        if not problem.is_convex:
            raise ConfigError(
                "scf.solver: newton_cg needs a passive update rule, such as OneBodyConvexUpdate, "
                "and this one is not; use auto, anderson or newton_krylov"
            )
        return [Phase(self._newton, options.num_scf_steps - 1, "newton_cg")]


@register_scf_solver("auto")
class Auto(SolvePlan):
    """One linear solve where the rule is affine; else Anderson, then Newton-Krylov if needed.

    A passive rule, whose linear problem is a symmetric positive form, gets ``cg`` if it is affine
    and ``newton_cg`` if it is not. A graph that Anderson has not brought to convergence in
    ``anderson_steps`` passes goes on with Newton-Krylov from there, one that it lost or gave up
    starts afresh with it; ``ScfResult.solver`` names what gave each graph's answer.
    """

    def __init__(
        self,
        *,
        anderson_steps: Annotated[
            Count, Doc("passes of Anderson mixing before Newton-Krylov takes over")
        ] = 25,
    ) -> None:
        self.anderson_steps = anderson_steps

    def phases(self, problem: FixedPointProblem, options: ScfOptions) -> list[Phase]:
        limit = options.num_scf_steps - 1
        if problem.quadratic is not None:
            plan: SolvePlan = build("scf_solver", "cg")
            return plan.phases(problem, options)
        if problem.is_convex:
            return NewtonCG().phases(problem, options)
        if problem.is_affine:
            return Affine().phases(problem, options)
        first = min(self.anderson_steps, limit)
        rest = [Phase(NewtonKrylov(), limit - first)] if limit > first else []
        return [Phase(Anderson(), first), *rest]
