"""Field-energy readouts: the density-dependent, non-variational part of the energy.

Equations: docs/field_readouts.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import sqrt
from typing import Annotated

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Doc
from fpmace.blocks.linear import (
    MLP,
    DotProducts,
    ElementLinear,
    Linear,
    uniform_multiplicity,
)
from fpmace.blocks.options import Count, LayerWidths
from fpmace.blocks.update_rule import NodeContext
from fpmace.errors import ConfigError
from fpmace.registry import register_field_readout, set_base


class FieldReadout(nn.Module, ABC):
    """Energy of an atom as a function of density, field features and node features.

    The constructor may ask for the context arguments of an update rule (see
    :class:`fpmace.blocks.update_rule.UpdateRule`), and for fermi_level_offset, eV.
    """

    is_variational: bool = False
    """Whether it is the energy to which a passive rule is the minimum."""

    needs_conjugate_features: bool = False
    """Whether the field features must be the potentials conjugate to the multipoles."""

    @abstractmethod
    def forward(self, field_features: Tensor, density: Tensor, context: NodeContext) -> Tensor:
        """Evaluate.

        Args:
            field_features: [n_atoms, field_irreps.dim], normalised.
            density: [n_atoms, density_irreps.dim] e Angstrom^l, the final density.
            context: node features of the last layer, local density, edges.

        Returns:
            [n_atoms] eV.
        """


set_base("field_readout", FieldReadout)


@register_field_readout("NullFieldReadout")
class NullFieldReadout(FieldReadout):
    """No density-dependent energy beyond electrostatics."""

    def forward(self, field_features: Tensor, density: Tensor, context: NodeContext) -> Tensor:
        return density.new_zeros(density.shape[0])


@register_field_readout("StrictQuadraticFieldEnergyReadout")
class StrictQuadraticFieldEnergyReadout(FieldReadout):
    """Bilinear in (density - local density) and field features, weighted by the atom's scalars.

    It vanishes where the field leaves the density as it is. Degrees that only one of density and
    field features has do not enter.
    """

    def __init__(
        self,
        *,
        n_channels: Annotated[
            Count, Doc("number of products per atom before they are weighted")
        ] = 32,
        feature_scale: Annotated[
            float, Doc("factor on the field features at the start; the weights can undo it")
        ] = 0.01,
        node_irreps: Irreps,
        field_irreps: Irreps,
        density_irreps: Irreps,
    ) -> None:
        super().__init__()
        if feature_scale == 0.0:
            raise ConfigError(
                "0 would make the energy vanish; use NullFieldReadout for that",
                where="feature_scale",
            )
        degrees = [ir.l for _, ir in Irreps(density_irreps) if ir in Irreps(field_irreps)]
        hidden = Irreps([(n_channels, (degree, (-1) ** degree)) for degree in degrees])
        self.degrees = degrees
        self.n_channels = n_channels
        self.feature_scale = float(feature_scale)
        self.field_irreps, self.density_irreps = Irreps(field_irreps), Irreps(density_irreps)
        self.linear_qa = Linear(density_irreps, hidden)
        self.linear_va = Linear(field_irreps, hidden)
        self.qv_tp = _FlatWeight(len(degrees) * n_channels**3)
        self.n_scalars = uniform_multiplicity(node_irreps)
        self.tp_down = _FlatWeight(n_channels * self.n_scalars)

    def forward(self, field_features: Tensor, density: Tensor, context: NodeContext) -> Tensor:
        n = self.n_channels
        shift = density - context.local_density
        products = self.qv_tp.weight.view(len(self.degrees), n, n, n)
        down = self.tp_down.weight.view(n, self.n_scalars)
        down = down * (1.0 / sqrt(n * self.n_scalars * len(self.degrees)) / n)
        scalars = context.node_feats[:, : self.n_scalars] @ down.T
        energy = density.new_zeros(density.shape[0])
        for index, degree in enumerate(self.degrees):
            # The multipole has one channel, so the product collapses to a [n_widths, n] matrix.
            widths = self.field_irreps[index].mul
            from_field = self._weight(self.linear_va, index, widths) / sqrt(widths)
            from_density = self._weight(self.linear_qa, index, 1)[0]
            kernel = torch.einsum("u,wv,uvc->wc", from_density, from_field, products[index])
            dim = 2 * degree + 1
            q = shift[:, self.density_irreps.slices()[index]]
            v = field_features[:, self.field_irreps.slices()[index]].reshape(-1, widths, dim)
            qv = torch.einsum("am,awm->aw", q, v) * (self.feature_scale / sqrt(dim))
            energy = energy + ((qv @ kernel) * scalars).sum(-1)
        return energy

    def _weight(self, linear: Linear, index: int, n_in: int) -> Tensor:
        start = sum(linear.irreps_in[i].mul * self.n_channels for i in range(index))
        return linear.weight[start : start + n_in * self.n_channels].view(n_in, self.n_channels)


class _FlatWeight(nn.Module):
    def __init__(self, numel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(numel, dtype=torch.float64))


@register_field_readout("OneBodyMLPFieldReadout")
class OneBodyMLPFieldReadout(FieldReadout):
    """Perceptron on invariants of (density + local density), field features and node features."""

    def __init__(
        self,
        *,
        hidden_sizes: LayerWidths = (128, 128, 128),
        node_irreps: Irreps,
        field_irreps: Irreps,
        density_irreps: Irreps,
    ) -> None:
        super().__init__()
        self.linear_up_q = Linear(density_irreps, node_irreps, bias=True)
        self.linear_up_v = Linear(field_irreps, node_irreps, bias=True)
        self.dot_products_q = DotProducts(node_irreps)
        self.dot_products_v = DotProducts(node_irreps)
        self.mlp = MLP([uniform_multiplicity(node_irreps), *hidden_sizes, 1])

    def forward(self, field_features: Tensor, density: Tensor, context: NodeContext) -> Tensor:
        from_density = self.linear_up_q(density + context.local_density)
        from_field = self.linear_up_v(field_features)
        invariants = self.dot_products_q(context.node_feats, from_density)
        invariants = invariants + self.dot_products_v(context.node_feats, from_field)
        return self.mlp(invariants).squeeze(-1)


class DensityEmbedding(nn.Module):
    """Element-dependent linear map plus a linear map of the node features."""

    def __init__(self, irreps_in: Irreps, node_irreps: Irreps, n_elements: int) -> None:
        super().__init__()
        self.prod = ElementLinear(irreps_in, node_irreps, n_elements)
        self.node_feats_linear = Linear(node_irreps, node_irreps)

    def forward(self, x: Tensor, context: NodeContext) -> Tensor:
        return self.prod(x, context.element) + self.node_feats_linear(context.node_feats)
