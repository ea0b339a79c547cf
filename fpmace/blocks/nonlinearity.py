"""Nonlinearities on the invariants of an update rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from fpmace.annotations import Check, Doc
from fpmace.blocks.linear import MLP
from fpmace.blocks.options import Count
from fpmace.registry import register_nonlinearity, set_base


def _has_layers(sizes: Sequence[int]) -> None:
    if not sizes:
        raise ValueError(
            "expects one or more layer widths, got []; without hidden layers it would be "
            "linear, which NoNonLinearity is for"
        )


Hidden = Annotated[
    tuple[Count, ...], Check(_has_layers), Doc("widths of the hidden layers, at least one")
]


class Nonlinearity(nn.Module, ABC):
    """Maps n scalars of an atom to n scalars.

    The constructor may ask for the context argument n_scalars.
    """

    is_affine: bool = False
    """Whether the map is affine."""

    @abstractmethod
    def forward(self, scalars: Tensor) -> Tensor:
        """[n_atoms, n_scalars] to [n_atoms, n_scalars]."""


set_base("nonlinearity", Nonlinearity)


@register_nonlinearity("NoNonLinearity")
class NoNonLinearity(Nonlinearity):
    """The identity: keeps an affine update rule affine."""

    is_affine = True

    def forward(self, scalars: Tensor) -> Tensor:
        return scalars


@register_nonlinearity("MLPNonLinearity")
class MLPNonLinearity(Nonlinearity):
    """Multilayer perceptron with SiLU between its layers, without biases."""

    def __init__(self, *, hidden_sizes: Hidden = (64, 64), n_scalars: int) -> None:
        super().__init__()
        self.mlp = MLP([n_scalars, *hidden_sizes, n_scalars])

    def forward(self, scalars: Tensor) -> Tensor:
        return self.mlp(scalars)


@register_nonlinearity("SkipMLPNonLinearity")
class SkipMLPNonLinearity(Nonlinearity):
    """The identity plus a multilayer perceptron: an affine rule with a correction."""

    def __init__(self, *, hidden_sizes: Hidden = (64, 64), n_scalars: int) -> None:
        super().__init__()
        self.mlp = MLP([n_scalars, *hidden_sizes, n_scalars])

    def forward(self, scalars: Tensor) -> Tensor:
        return scalars + self.mlp(scalars)
