"""Energy readouts and their activation functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.blocks.linear import Linear, silu
from fpmace.errors import ConfigError, suggestion

TANH_NORM = 1.5937334472592695
"""Second-moment normalisation of tanh, e3nn's seeded sample average."""

ABS_NORM = 1.001110600838467
"""Second-moment normalisation of the absolute value, likewise."""

Gate = Callable[[Tensor], Tensor]


def _scaled_tanh(x: Tensor) -> Tensor:
    return torch.tanh(x) * TANH_NORM


def _scaled_abs(x: Tensor) -> Tensor:
    return torch.abs(x) * ABS_NORM


def _identity(x: Tensor) -> Tensor:
    return x


GATES: dict[str, Gate] = {
    "silu": silu,
    "tanh": _scaled_tanh,
    "abs": _scaled_abs,
    "None": _identity,
}
"""Activations of non-linear readouts, scaled to unit second moment on normal input."""


def get_gate(name: str | None) -> Gate:
    """Look up the activation that the option ``gate`` names.

    Raises:
        ConfigError: naming the known ones.
    """
    key = "None" if name is None else name
    if key not in GATES:
        raise ConfigError(
            f"gate: no activation named {name!r}{suggestion(str(name), GATES)} "
            f"(known: {', '.join(GATES)})"
        )
    return GATES[key]


def of_head(values: Tensor, head: Tensor | None) -> Tensor:
    """The value of each atom's head: [n_atoms, n_heads] to [n_atoms]."""
    if head is None:
        return values.squeeze(-1)
    return values.gather(-1, head.unsqueeze(-1)).squeeze(-1)


class LinearReadout(nn.Module):
    """Energy of each head as a linear function of the scalar features."""

    def __init__(self, irreps_in: Irreps, n_heads: int = 1) -> None:
        super().__init__()
        self.linear = Linear(irreps_in, Irreps(f"{n_heads}x0e"))

    def forward(self, node_feats: Tensor, head: Tensor | None = None) -> Tensor:
        """[n_atoms, irreps_in.dim] and heads [n_atoms] to [n_atoms] in eV."""
        return of_head(self.linear(node_feats), head)


class NonLinearReadout(nn.Module):
    """Energy of each head as a perceptron of the scalar features.

    Every head has its own hidden features; those of others count as zero. The maps are normalised
    by the number of all of them.

    Args:
        irreps_in: of the features.
        MLP_irreps: hidden features of a head, scalars.
        gate: activation; see :func:`get_gate`.
        bias: a second hidden layer and biases after the first map.
    """

    def __init__(
        self,
        irreps_in: Irreps,
        MLP_irreps: Irreps,
        gate: str | None,
        *,
        n_heads: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        hidden = Irreps(MLP_irreps)
        if any((ir.l, ir.p) != (0, 1) for _, ir in hidden):
            raise ConfigError(f"MLP_irreps: only scalars such as '16x0e' work, got '{hidden}'")
        self.n_heads = n_heads
        of_all = Irreps(f"{n_heads * hidden.dim}x0e")
        self.linear_1 = Linear(irreps_in, of_all)
        self.linear_mid = Linear(of_all, of_all, bias=True) if bias else None
        self.linear_2 = Linear(of_all, Irreps(f"{n_heads}x0e"), bias=bias)
        self.gate = get_gate(gate)

    def forward(self, node_feats: Tensor, head: Tensor | None = None) -> Tensor:
        """[n_atoms, irreps_in.dim] and heads [n_atoms] to [n_atoms] in eV."""
        hidden = self._masked(self.gate(self.linear_1(node_feats)), head)
        if self.linear_mid is not None:
            hidden = self._masked(self.gate(self.linear_mid(hidden)), head)
        return of_head(self.linear_2(hidden), head)

    def _masked(self, hidden: Tensor, head: Tensor | None) -> Tensor:
        if head is None:
            return hidden
        mask = torch.nn.functional.one_hot(head, self.n_heads).to(hidden.dtype)
        return (hidden.unflatten(1, (self.n_heads, -1)) * mask.unsqueeze(-1)).flatten(1)
