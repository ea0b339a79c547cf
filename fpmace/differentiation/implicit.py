"""Implicit differentiation by matrix-free adjoint solves, exact to the order asked.

With F the residual (attached to positions and parameters) and K = -dF/dx at the solution
(detached), each correction ``x <- x + K^-1 F(x)`` changes no number but adds one exact order of
derivatives: one correction gives first derivatives, two give second derivatives. Forward solves
are skipped, F being zero; the backward pass solves with the transpose of K.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Protocol

import torch
from torch import Tensor

from fpmace.annotations import Bounds, Doc
from fpmace.differentiation.base import Differentiation
from fpmace.registry import register_differentiation
from fpmace.scf.jacobian_product import JacobianProduct
from fpmace.scf.jacobian_solve import (
    DENSE_SIZE,
    LinearisedSolve,
    linearised_solve,
    reachable_rtol,
)
from fpmace.scf.options import DenseSize, LinearIterations
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState

Pair = tuple[Tensor, Tensor]
"""Per atom [n_atoms, n_lm] and per graph [n_graphs]."""


class _Context(Protocol):
    """What autograd hands from the forward to the backward pass."""

    solve: LinearisedSolve
    transpose: bool
    zeros: Pair

    def set_materialize_grads(self, value: bool) -> None: ...


class _Solve(torch.autograd.Function):
    """K^-1 (or K^-T), differentiable in its right-hand side any number of times.

    With ``known`` the right-hand side is zero in numbers: nothing is solved on the way forward.
    """

    @staticmethod
    def forward(
        ctx: _Context, solve: LinearisedSolve, transpose: bool, known: bool, a: Tensor, e: Tensor
    ) -> Pair:
        ctx.solve, ctx.transpose = solve, transpose
        ctx.zeros = torch.zeros_like(a), torch.zeros_like(e)
        # A solution whose derivatives are held back gives none: nothing is solved for them.
        ctx.set_materialize_grads(False)
        if known:
            return torch.zeros_like(a), torch.zeros_like(e)
        return solve.solve_transpose(a, e) if transpose else solve.solve(a, e)

    @staticmethod
    def backward(
        ctx: _Context, *grads: Tensor | None
    ) -> tuple[None, None, None, Tensor | None, Tensor | None]:
        if all(grad is None for grad in grads):
            return None, None, None, None, None
        given = [zero if g is None else g for g, zero in zip(grads, ctx.zeros, strict=True)]
        return None, None, None, *inverse(ctx.solve, *given, transpose=not ctx.transpose)


def inverse(
    solve: LinearisedSolve, a: Tensor, e: Tensor, *, transpose: bool = False, known: bool = False
) -> Pair:
    """K^-1 applied to (a [n_atoms, n_lm], e [n_graphs]), differentiable in both.

    Args:
        transpose: K^-T instead.
        known: a and e are zero in numbers, only their derivatives count.
    """
    apply: Callable[..., Pair] = _Solve.apply
    return apply(solve, transpose, known, a, e)


@register_differentiation("none")
class NoDifferentiation(Differentiation):
    """No derivatives through the density: energies only, or explicitly approximate forces."""

    exact_order = 0

    def reattach(
        self,
        problem: FixedPointProblem,
        solution: ScfState,
        order: int,
        where: Tensor | None = None,
    ) -> ScfState:
        return ScfState(solution.density.detach(), solution.fermi_level.detach())


@register_differentiation("implicit")
class ImplicitDifferentiation(Differentiation):
    """Implicit function theorem; memory does not depend on the number of SCF steps."""

    def __init__(
        self,
        *,
        linear_tolerance: Annotated[
            float | None,
            Bounds(above=0.0),
            Doc("relative residual of the solves; none: as small as the precision allows"),
        ] = None,
        max_linear_iterations: LinearIterations = 200,
        max_dense_size: DenseSize = DENSE_SIZE,
        newton_correction: Annotated[
            bool, Doc("solve forward as well, which polishes a loosely converged density")
        ] = False,
        linearised: Annotated[
            bool, Doc("correct with the tangent of the map: exact to first order only")
        ] = False,
    ) -> None:
        self.linear_tolerance = linear_tolerance
        self.max_linear_iterations = max_linear_iterations
        self.max_dense_size = max_dense_size
        self.newton_correction = newton_correction
        self.linearised = linearised

    @property
    def exact_order(self) -> int | None:
        return 1 if self.linearised else None

    def reattach(
        self,
        problem: FixedPointProblem,
        solution: ScfState,
        order: int,
        where: Tensor | None = None,
    ) -> ScfState:
        density, level = solution.density.detach(), solution.fermi_level.detach()
        if order == 0:
            return ScfState(density, level)
        solve = linearised_solve(
            problem,
            problem.linearisation(density, level),
            rtol=reachable_rtol(self.linear_tolerance, density.dtype),
            max_iterations=self.max_linear_iterations,
            max_dense_size=self.max_dense_size,
        )
        evaluate = problem.evaluate
        if self.linearised:
            evaluate = _LinearisedMap(problem, density, problem.spread(level))
        for _ in range(order):
            new, _features = evaluate(density, problem.spread(level))
            a, e = new - density, -problem.charge_error(density)
            if where is not None and not bool(where.all()):
                a = torch.where(problem.spread(where).unsqueeze(-1), a, 0.0)
                e = torch.where(where, e, 0.0)
            step = inverse(solve, a, e, known=not self.newton_correction)
            density, level = density + step[0], level + step[1]
        return ScfState(density, level)


class _LinearisedMap:
    """The tangent of the map at a fixed point of expansion; depends on positions, parameters."""

    def __init__(self, problem: FixedPointProblem, density: Tensor, levels: Tensor) -> None:
        with torch.enable_grad():
            self._density = density.detach().requires_grad_()
            self._levels = levels.detach().requires_grad_()
            self._value, self._features = problem.evaluate(self._density, self._levels)
            self._push = JacobianProduct(self._value, self._density, self._levels)

    def __call__(self, density: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        change = (density - self._density.detach(), levels - self._levels.detach())
        return self._value + self._push(*change, create_graph=True), self._features
