"""Field mixers: how the embedding of the central atom joins its message."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.blocks.linear import Linear, uniform_multiplicity
from fpmace.registry import register_field_mixer, set_base


class FieldMixer(nn.Module, ABC):
    """Combines a message with the embedded features of the atom that receives it.

    The constructor may ask for the context arguments mixed_irreps (of the embedding) and
    target_irreps (of the message).
    """

    is_affine: bool = True
    """Whether the result is affine in message and embedding together."""

    @abstractmethod
    def forward(self, message: Tensor, embedded: Tensor) -> Tensor:
        """[n_atoms, target_irreps.dim] and [n_atoms, mixed_irreps.dim] to the former's shape."""


set_base("field_mixer", FieldMixer)


@register_field_mixer("NoMixer")
class NoMixer(FieldMixer):
    """The message alone: an atom's own field acts through the skip connection only.

    That is there with ``use_sc`` and a residual interaction block.
    """

    def forward(self, message: Tensor, embedded: Tensor) -> Tensor:
        return message


@register_field_mixer("AdditiveFieldMixer")
class AdditiveFieldMixer(FieldMixer):
    """Message plus a linear map of the central atom's embedding, with a bias on scalars."""

    def __init__(self, *, mixed_irreps: Irreps, target_irreps: Irreps) -> None:
        super().__init__()
        self.linear = Linear(mixed_irreps, target_irreps, bias=True)

    def forward(self, message: Tensor, embedded: Tensor) -> Tensor:
        return message + self.linear(embedded)


@register_field_mixer("UncoupledProductMixer")
class UncoupledProductMixer(FieldMixer):
    """Message times one plus a linear map of the embedding's scalars, per channel and degree.

    Channel u of degree l is multiplied by 1 + b_ul + sum_v W_vul x_v / sqrt(n), x the n scalars of
    the embedding: a product without coupling of directions. Not affine, as the message depends on
    the field too.
    """

    is_affine = False

    def __init__(self, *, mixed_irreps: Irreps, target_irreps: Irreps) -> None:
        super().__init__()
        self.target_irreps = Irreps(target_irreps)
        self.n_channels = uniform_multiplicity(mixed_irreps)
        scalars = Irreps(f"{self.n_channels}x0e")
        gates = Irreps(f"{self.n_channels * len(self.target_irreps)}x0e")
        self.linear = Linear(scalars, gates, bias=True)

    def forward(self, message: Tensor, embedded: Tensor) -> Tensor:
        n = self.n_channels
        gates = 1.0 + self.linear(embedded[:, :n])
        pieces = []
        parts = zip(self.target_irreps.slices(), self.target_irreps, strict=True)
        for index, (part, (mul, ir)) in enumerate(parts):
            gate = gates[:, index * n : (index + 1) * n].unsqueeze(-1)
            block = message[:, part].reshape(-1, mul, ir.dim) * gate
            pieces.append(block.reshape(-1, mul * ir.dim))
        return torch.cat(pieces, dim=-1)
