"""Solutions of energies that are stationary in them: derivatives that can be held back.

For such an energy the derivative by positions and strain is the explicit one, at a held dual
potential and Fermi level, while a loss on forces, a Hessian or a polarizability also needs the
derivative of the solution. So the solution carries its derivatives behind a gate, which is
closed while forces and stress are formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState


class Gate:
    """Decides whether derivatives go through the tensors that it guards."""

    def __init__(self) -> None:
        self.is_open = True

    def guard(self, value: Tensor) -> Tensor:
        """The same tensor; its gradient is dropped while the gate is closed."""
        apply: Callable[[Gate, Tensor], Tensor] = _Guarded.apply
        return apply(self, value)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Hold the guarded tensors fixed."""
        self.is_open = False
        try:
            yield
        finally:
            self.is_open = True


class _Context(Protocol):
    """What autograd hands from the forward to the backward pass."""

    gate: Gate


class _Guarded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, gate: Gate, value: Tensor) -> Tensor:
        ctx.gate = gate
        return value.view_as(value)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[None, Tensor | None]:
        return None, grads[0] if ctx.gate.is_open else None


def held_solution(
    problem: FixedPointProblem, solution: ScfState, order: int, features: Tensor | None = None
) -> tuple[Tensor, Tensor, Callable[[], AbstractContextManager[None]]]:
    """Fermi level and field features of a solution, and a context in which both are held.

    Args:
        problem: attached to positions and parameters.
        solution: density and level, with derivatives attached to the order.
        order: how often the density will be differentiated beyond the forces; 0: no derivative
            of the solution is needed, and none is kept.
        features: those of the solution, detached, if they are known.
    """
    if order == 0:
        if features is None:
            with torch.no_grad():
                level = problem.spread(solution.fermi_level)
                features = problem.features(solution.density, level)
        return solution.fermi_level.detach(), features.detach(), nullcontext
    gate = Gate()
    attached = problem.features(solution.density, problem.spread(solution.fermi_level))
    return gate.guard(solution.fermi_level), gate.guard(attached), gate.closed
