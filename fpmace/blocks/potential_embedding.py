"""Potential embeddings: from field features of an atom to hidden features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Doc, Positive
from fpmace.blocks.linear import ElementLinear, Linear
from fpmace.blocks.options import check_degrees
from fpmace.registry import register_potential_embedding, set_base


class PotentialEmbedding(nn.Module, ABC):
    """Maps field features to the irreps of the node features.

    An embedding splits into a part that never changes during the SCF (``bias``, computed once)
    and the embedding of the field features proper. The constructor may ask for the context
    arguments field_irreps, node_irreps and n_elements.
    """

    is_affine: bool = True
    """Whether the result is affine in the field features."""

    def bias(self, node_feats: Tensor) -> Tensor | None:
        """The field-independent term, [n_atoms, node_irreps.dim], or None."""
        return None

    @abstractmethod
    def forward(self, field_features: Tensor, element: Tensor, bias: Tensor | None) -> Tensor:
        """Embed.

        Args:
            field_features: [n_atoms, field_irreps.dim], normalised.
            element: [n_atoms] int64, index of the element.
            bias: what :meth:`bias` returned for these atoms.

        Returns:
            [n_atoms, node_irreps.dim].
        """


set_base("potential_embedding", PotentialEmbedding)


def _element_map(field_irreps: Irreps, node_irreps: Irreps, n_elements: int) -> ElementLinear:
    check_degrees(field_irreps, node_irreps, what="field features", option="field_feature_max_l")
    return ElementLinear(field_irreps, node_irreps, n_elements)


@register_potential_embedding("LinearPotentialEmbedding")
class LinearPotentialEmbedding(PotentialEmbedding):
    """Element-dependent linear map of the field features."""

    def __init__(self, *, field_irreps: Irreps, node_irreps: Irreps, n_elements: int) -> None:
        super().__init__()
        self.prod = _element_map(field_irreps, node_irreps, n_elements)

    def forward(self, field_features: Tensor, element: Tensor, bias: Tensor | None) -> Tensor:
        return self.prod(field_features, element)


@register_potential_embedding("BiasedLinearPotentialEmbedding")
class BiasedLinearPotentialEmbedding(PotentialEmbedding):
    """Element-dependent linear map of the field features plus a linear map of node features."""

    def __init__(self, *, field_irreps: Irreps, node_irreps: Irreps, n_elements: int) -> None:
        super().__init__()
        self.prod = _element_map(field_irreps, node_irreps, n_elements)
        self.node_feats_linear = Linear(node_irreps, node_irreps)

    def bias(self, node_feats: Tensor) -> Tensor:
        return self.node_feats_linear(node_feats)

    def forward(self, field_features: Tensor, element: Tensor, bias: Tensor | None) -> Tensor:
        embedded = self.prod(field_features, element)
        return embedded if bias is None else embedded + bias


@register_potential_embedding("TanhPotentialEmbedding")
class TanhPotentialEmbedding(PotentialEmbedding):
    """Linear map squashed by tanh, so that the response saturates, plus that of node features.

    With s the saturation, a scalar x of the element-dependent linear map becomes s tanh(x/s) and
    a vector (or higher degree) v becomes v tanh(n)/n with n^2 = |v/s|^2 + 1e-6, smooth at v = 0.
    The linear map of the node features is added to the result and is not bounded.
    """

    is_affine = False

    def __init__(
        self,
        *,
        saturation: Annotated[
            Positive,
            Doc("largest size s of an embedded feature, in the units of the normalised features"),
        ] = 5.0,
        field_irreps: Irreps,
        node_irreps: Irreps,
        n_elements: int,
    ) -> None:
        super().__init__()
        self.irreps = Irreps(node_irreps)
        self.saturation = saturation
        self.prod = _element_map(field_irreps, node_irreps, n_elements)
        self.node_feats_linear = Linear(node_irreps, node_irreps)

    def bias(self, node_feats: Tensor) -> Tensor:
        return self.node_feats_linear(node_feats)

    def forward(self, field_features: Tensor, element: Tensor, bias: Tensor | None) -> Tensor:
        embedded = self.prod(field_features, element)
        pieces = []
        for part, (mul, ir) in zip(self.irreps.slices(), self.irreps, strict=True):
            block = embedded[:, part]
            if ir.l == 0:
                pieces.append(self.saturation * torch.tanh(block / self.saturation))
                continue
            vectors = block.reshape(-1, mul, ir.dim)
            # The offset keeps both derivatives of the norm finite at a zero vector.
            norm = ((vectors / self.saturation).square().sum(-1, keepdim=True) + 1e-6).sqrt()
            pieces.append((vectors * torch.tanh(norm) / norm).reshape(-1, mul * ir.dim))
        squashed = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
        return squashed if bias is None else squashed + bias
