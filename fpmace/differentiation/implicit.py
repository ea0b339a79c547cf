"""Implicit differentiation by matrix-free adjoint solves, exact to the order asked.

With F the residual (attached to positions and parameters) and K = -dF/dx at the solution
(detached), each correction ``x <- x + K^-1 F(x)`` changes no number but adds one exact order of
derivatives: one correction gives first derivatives, two give second derivatives. Forward solves
are skipped, F being zero; the backward pass solves with the transpose of K.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpmace.differentiation.base import Differentiation
from fpmace.registry import register_differentiation
from fpmace.scf.jacobian_product import JacobianProduct
from fpmace.scf.jacobian_solve import DENSE_SIZE, JacobianSolve, reachable_rtol
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState


class _Solve(torch.autograd.Function):
    """K^-1, differentiable in its right-hand side any number of times."""

    @staticmethod
    def forward(ctx: Any, response: JacobianSolve, a: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        ctx.response = response
        return response.solve(a, e)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        g, h = _SolveTranspose.apply(ctx.response, *grads)
        return None, g, h


class _SolveTranspose(torch.autograd.Function):
    """K^-T, differentiable in its right-hand side any number of times."""

    @staticmethod
    def forward(ctx: Any, response: JacobianSolve, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        ctx.response = response
        return response.solve_transpose(g, h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        a, e = _Solve.apply(ctx.response, *grads)
        return None, a, e


class _Attach(torch.autograd.Function):
    """K^-1 F where F is zero: no solve forward, the adjoint solve backward."""

    @staticmethod
    def forward(ctx: Any, response: JacobianSolve, a: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        ctx.response = response
        return torch.zeros_like(a), torch.zeros_like(e)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        g, h = _SolveTranspose.apply(ctx.response, *grads)
        return None, g, h


@register_differentiation("none")
class NoDifferentiation(Differentiation):
    """No derivatives through the density: energies only, or explicitly approximate forces."""

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
        linear_tolerance: float | None = None,
        max_linear_iterations: int = 200,
        max_dense_size: int = DENSE_SIZE,
        newton_correction: bool = False,
        linearised: bool = False,
    ) -> None:
        self.linear_tolerance = linear_tolerance
        self.max_linear_iterations = max_linear_iterations
        self.max_dense_size = max_dense_size
        self.newton_correction = newton_correction
        self.linearised = linearised

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
        response = JacobianSolve(
            problem,
            problem.linearisation(density, level),
            rtol=reachable_rtol(self.linear_tolerance, density.dtype),
            max_iterations=self.max_linear_iterations,
            max_dense_size=self.max_dense_size,
        )
        evaluate = problem.evaluate
        if self.linearised:
            evaluate = _LinearisedMap(problem, density, problem.spread(level))
        correct = _Solve if self.newton_correction else _Attach
        for _ in range(order):
            new, _features = evaluate(density, problem.spread(level))
            a, e = new - density, -problem.charge_error(density)
            if where is not None and not bool(where.all()):
                a = torch.where(problem.spread(where).unsqueeze(-1), a, 0.0)
                e = torch.where(where, e, 0.0)
            step = correct.apply(response, a, e)
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
