"""Interaction blocks: features of the neighbours, weighted by distance and direction, summed.

Spec of the equations: I. Batatia et al., NeurIPS 2022 (MACE), eqs. 8 and 9. The blocks differ in
how the sum is normalised and in what is passed around the product basis (the skip).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import sqrt

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.blocks.coupling import wigner_3j
from fpmace.blocks.edges import EdgeLayout
from fpmace.blocks.linear import MLP, ElementLinear, Linear, uniform_multiplicity
from fpmace.registry import register_interaction, set_base


def convolution_paths(
    node_irreps: Irreps, edge_irreps: Irreps, target_irreps: Irreps
) -> list[tuple[int, int, int]]:
    """Paths (l1 of the node, l2 of the edge, l3 of the message) in the order of the weights.

    Enumerated with l1 outer, l2 middle, l3 inner, kept where l3 is in the target with parity
    (-1)^l3, then stably sorted by l3.
    """
    wanted = {ir.l for _, ir in Irreps(target_irreps)}
    paths = [
        (a.l, b.l, l3)
        for _, a in Irreps(node_irreps)
        for _, b in Irreps(edge_irreps)
        for l3 in range(abs(a.l - b.l), a.l + b.l + 1)
        if l3 in wanted and (a.l + b.l + l3) % 2 == 0
    ]
    return sorted(paths, key=lambda path: path[2])


class EdgeConvolution(nn.Module):
    """Sum over neighbours of ``R(r) (h x Y)``: one channel-wise product per path."""

    def __init__(self, node_irreps: Irreps, edge_irreps: Irreps, target_irreps: Irreps) -> None:
        super().__init__()
        self.node_irreps, self.edge_irreps = Irreps(node_irreps), Irreps(edge_irreps)
        self.n_channels = uniform_multiplicity(self.node_irreps)
        self.paths = convolution_paths(node_irreps, edge_irreps, target_irreps)
        self.irreps_out = Irreps([(self.n_channels, (l3, (-1) ** l3)) for _, _, l3 in self.paths])
        for index, (l1, l2, l3) in enumerate(self.paths):
            tensor = torch.from_numpy(wigner_3j(l1, l2, l3) * sqrt(2 * l3 + 1))
            self.register_buffer(f"coupling{index}", tensor, persistent=False)

    @property
    def n_weights(self) -> int:
        return len(self.paths) * self.n_channels

    def forward(
        self, node_feats: Tensor, edge_attrs: Tensor, weights: Tensor, edges: EdgeLayout
    ) -> Tensor:
        n = self.n_channels
        h = node_feats[edges.sender]
        blocks = [
            h[:, part].reshape(-1, n, ir.dim)
            for part, (_, ir) in zip(self.node_irreps.slices(), self.node_irreps, strict=True)
        ]
        weight = weights.view(-1, len(self.paths), n)
        pieces = []
        for index, (l1, l2, l3) in enumerate(self.paths):
            geometry = torch.einsum(
                "ej,ijk->eik",
                edge_attrs[:, l2 * l2 : (l2 + 1) ** 2],
                getattr(self, f"coupling{index}"),
            )
            term = (blocks[l1] * weight[:, index].unsqueeze(-1)) @ geometry
            pieces.append(term.reshape(-1, n * (2 * l3 + 1)))
        return edges.sum_to_receivers(torch.cat(pieces, dim=-1))


class Interaction(nn.Module, ABC):
    """Maps node features to messages.

    The constructor may ask for these context arguments: node_irreps (of the input), edge_irreps
    (1x0e+1x1o+...), target_irreps (of the message), hidden_irreps (of the skip), n_elements,
    n_edge_features, avg_num_neighbors, radial_MLP.
    """

    @abstractmethod
    def forward(
        self,
        node_feats: Tensor,
        element: Tensor,
        edge_attrs: Tensor,
        edge_feats: Tensor,
        edges: EdgeLayout,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute messages.

        Args:
            node_feats: [n_atoms, node_irreps.dim].
            element: [n_atoms] int64.
            edge_attrs: [n_edges, edge_irreps.dim] spherical harmonics, component normalisation.
            edge_feats: [n_edges, n_edge_features] radial basis.
            edges: who is connected to whom.

        Returns:
            message [n_atoms, target_irreps.dim] and skip [n_atoms, hidden_irreps.dim] or None.
        """


set_base("interaction", Interaction)


class _Messages(nn.Module):
    pass


class RealAgnosticBase(Interaction):
    """Common part of the RealAgnostic blocks; not registered."""

    residual: bool
    density: bool

    def __init__(
        self,
        *,
        node_irreps: Irreps,
        edge_irreps: Irreps,
        target_irreps: Irreps,
        hidden_irreps: Irreps,
        n_elements: int,
        n_edge_features: int,
        avg_num_neighbors: float,
        radial_MLP: Sequence[int],
    ) -> None:
        super().__init__()
        self.linear_up = Linear(node_irreps, node_irreps)
        self.conv_tp = EdgeConvolution(node_irreps, edge_irreps, target_irreps)
        self.conv_tp_weights = MLP([n_edge_features, *radial_MLP, self.conv_tp.n_weights])
        self.linear = Linear(self.conv_tp.irreps_out, target_irreps)
        self.avg_num_neighbors = float(avg_num_neighbors)
        if self.residual:
            self.skip_tp = ElementLinear(node_irreps, hidden_irreps, n_elements)
        else:
            self.skip_tp = ElementLinear(target_irreps, target_irreps, n_elements)
        if self.density:
            self.density_fn = MLP([n_edge_features, 1])

    def forward(
        self,
        node_feats: Tensor,
        element: Tensor,
        edge_attrs: Tensor,
        edge_feats: Tensor,
        edges: EdgeLayout,
    ) -> tuple[Tensor, Tensor | None]:
        weights = self.conv_tp_weights(edge_feats)
        message = self.conv_tp(self.linear_up(node_feats), edge_attrs, weights, edges)
        message = self.linear(message)
        if self.density:
            per_edge = torch.tanh(self.density_fn(edge_feats) ** 2)
            message = message / (1.0 + edges.sum_to_receivers(per_edge))
        else:
            message = message * (1.0 / self.avg_num_neighbors)
        if self.residual:
            return message, self.skip_tp(node_feats, element)
        return self.skip_tp(message, element), None


@register_interaction("RealAgnosticInteractionBlock")
class RealAgnosticInteractionBlock(RealAgnosticBase):
    """Sum over neighbours divided by their average number, then a map per element; no skip."""

    residual, density = False, False


@register_interaction("RealAgnosticResidualInteractionBlock")
class RealAgnosticResidualInteractionBlock(RealAgnosticBase):
    """Sum over neighbours divided by their average number; skip by a map per element."""

    residual, density = True, False


@register_interaction("RealAgnosticDensityInteractionBlock")
class RealAgnosticDensityInteractionBlock(RealAgnosticBase):
    """Sum over neighbours divided by 1 + a learned density, then a map per element; no skip."""

    residual, density = False, True


@register_interaction("RealAgnosticDensityResidualInteractionBlock")
class RealAgnosticDensityResidualInteractionBlock(RealAgnosticBase):
    """Sum over neighbours divided by 1 + a learned density; skip by a map per element."""

    residual, density = True, True
