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

Gate = Callable[[Tensor], Tensor]


def _scaled_tanh(x: Tensor) -> Tensor:
    return torch.tanh(x) * TANH_NORM


def _identity(x: Tensor) -> Tensor:
    return x


GATES: dict[str, Gate] = {"silu": silu, "tanh": _scaled_tanh, "None": _identity}
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


class LinearReadout(nn.Module):
    """Energy as a linear function of the scalar features."""

    def __init__(self, irreps_in: Irreps) -> None:
        super().__init__()
        self.linear = Linear(irreps_in, Irreps("1x0e"))

    def forward(self, node_feats: Tensor) -> Tensor:
        """[n_atoms, irreps_in.dim] to [n_atoms] in eV."""
        return self.linear(node_feats).squeeze(-1)


class NonLinearReadout(nn.Module):
    """Energy as a one-layer perceptron of the scalar features."""

    def __init__(self, irreps_in: Irreps, MLP_irreps: Irreps, gate: str | None) -> None:
        super().__init__()
        hidden = Irreps(MLP_irreps)
        if any((ir.l, ir.p) != (0, 1) for _, ir in hidden):
            raise ConfigError(f"MLP_irreps: only scalars such as '16x0e' work, got '{hidden}'")
        self.linear_1 = Linear(irreps_in, hidden)
        self.linear_2 = Linear(hidden, Irreps("1x0e"))
        self.gate = get_gate(gate)

    def forward(self, node_feats: Tensor) -> Tensor:
        """[n_atoms, irreps_in.dim] to [n_atoms] in eV."""
        return self.linear_2(self.gate(self.linear_1(node_feats))).squeeze(-1)
