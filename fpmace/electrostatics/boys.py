"""The Boys function, which makes the Coulomb potential of a Gaussian smooth at the origin."""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import Any

import torch
from torch import Tensor

# Below the switch the series is summed; above it upward recursion is stable (to 4e-14 for n = 10).
_SWITCH = 4.0
_N_TERMS = 32


def boys(t: Tensor, max_order: int) -> Tensor:
    """F_n(t) = int_0^1 u^(2n) exp(-t u^2) du for n = 0..max_order, stacked in front.

    erf(a r)/r = (2a/sqrt(pi)) F_0(a^2 r^2) and dF_n/dt = -F_(n+1), which gives derivatives of any
    order exactly, at t = 0 too (F. Boys, Proc. R. Soc. A 200, 542 (1950)).

    Args:
        t: [...] not negative.
    """
    apply: Callable[[Tensor, int], Tensor] = _Boys.apply
    return apply(t, max_order)


class _Boys(torch.autograd.Function):
    @staticmethod
    def forward(t: Tensor, max_order: int) -> Tensor:
        return _values(t, max_order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        t, ctx.max_order = inputs
        ctx.save_for_backward(t)
        ctx.save_for_forward(t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (t,) = ctx.saved_tensors
        return -(grad * boys(t, ctx.max_order + 1)[1:]).sum(0), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (t,) = ctx.saved_tensors
        return -tangent * boys(t, ctx.max_order + 1)[1:]


def _values(t: Tensor, max_order: int) -> Tensor:
    """Series and downward recursion for small t, upward recursion from erf for large t."""
    near = t.clamp(max=_SWITCH)
    far = t.clamp(min=_SWITCH)
    decay = torch.exp(-near)
    total = torch.ones_like(t)
    one = torch.ones((), dtype=t.dtype, device=t.device)
    for i in range(_N_TERMS, 0, -1):
        total.mul_(near)
        torch.add(one, total, alpha=2.0 / (2 * max_order + 2 * i + 1), out=total)
    small = [decay * total / (2 * max_order + 1)]
    for n in range(max_order - 1, -1, -1):
        small.append((2.0 * near * small[-1] + decay) / (2 * n + 1))
    root = far.sqrt()
    tail = torch.exp(-far)
    large = [0.5 * pi**0.5 * torch.erf(root) / root]
    for n in range(max_order):
        large.append(((2 * n + 1) * large[-1] - tail) / (2.0 * far))
    return torch.where(t < _SWITCH, torch.stack(small[::-1]), torch.stack(large))
