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
from fpmace.scf.linear_response import LinearResponse, default_rtol
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState


class _Solve(torch.autograd.Function):
    """K^-1, differentiable in its right-hand side any number of times."""

    @staticmethod
    def forward(ctx: Any, response: LinearResponse, a: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        ctx.response = response
        return response.solve(a, e)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        g, h = _SolveTranspose.apply(ctx.response, *grads)
        return None, g, h


class _SolveTranspose(torch.autograd.Function):
    """K^-T, differentiable in its right-hand side any number of times."""

    @staticmethod
    def forward(ctx: Any, response: LinearResponse, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        ctx.response = response
        return response.solve_transpose(g, h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        a, e = _Solve.apply(ctx.response, *grads)
        return None, a, e


class _Attach(torch.autograd.Function):
    """K^-1 F where F is zero: no solve forward, the adjoint solve backward."""

    @staticmethod
    def forward(ctx: Any, response: LinearResponse, a: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        ctx.response = response
        return torch.zeros_like(a), torch.zeros_like(e)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        g, h = _SolveTranspose.apply(ctx.response, *grads)
        return None, g, h


@register_differentiation("none")
class NoDifferentiation(Differentiation):
    """No derivatives through the density: energies only, or explicitly approximate forces."""

    def reattach(self, problem: FixedPointProblem, solution: ScfState, order: int) -> ScfState:
        return ScfState(solution.density.detach(), solution.fermi_level.detach())


@register_differentiation("implicit")
class ImplicitDifferentiation(Differentiation):
    """Implicit function theorem; memory does not depend on the number of SCF steps."""

    def __init__(
        self,
        *,
        linear_tolerance: float | None = None,
        max_linear_iterations: int = 200,
        newton_correction: bool = False,
    ) -> None:
        self.linear_tolerance = linear_tolerance
        self.max_linear_iterations = max_linear_iterations
        self.newton_correction = newton_correction

    def reattach(self, problem: FixedPointProblem, solution: ScfState, order: int) -> ScfState:
        density, level = solution.density.detach(), solution.fermi_level.detach()
        if order == 0:
            return ScfState(density, level)
        response = LinearResponse(
            problem,
            problem.linearise(density, problem.spread(level)),
            rtol=self.linear_tolerance or default_rtol(density.dtype),
            max_iterations=self.max_linear_iterations,
        )
        correct = _Solve if self.newton_correction else _Attach
        for _ in range(order):
            new, _features = problem.evaluate(density, problem.spread(level))
            step = correct.apply(response, new - density, -problem.charge_error(density))
            density, level = density + step[0], level + step[1]
        return ScfState(density, level)
