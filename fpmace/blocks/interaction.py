"""Interaction blocks: features of the neighbours, weighted by distance and direction, summed.

Equations: I. Batatia et al., NeurIPS 2022 (MACE), eqs. 8 and 9. The blocks differ in
how the sum is normalised and in what is passed around the product basis (the skip).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.blocks.convolution import EdgeConvolution
from fpmace.blocks.edges import EdgeLayout
from fpmace.blocks.linear import MLP, ElementLinear, Linear
from fpmace.blocks.radial_table import RadialTables
from fpmace.registry import register_interaction, set_base


@dataclass(frozen=True, slots=True)
class PreparedGeometry:
    """Harmonics, radial functions, connectivity and cutoff; see :meth:`Interaction.prepare`."""

    edge_attrs: Tensor
    edge_feats: Tensor
    edges: EdgeLayout
    cutoff: Tensor | None


class Interaction(nn.Module, ABC):
    """Maps node features to messages.

    The constructor may ask for these context arguments: node_irreps (of the input), edge_irreps
    (harmonics, 1x0e+1x1o+...), target_irreps (of the message), hidden_irreps (of the skip),
    convolution_irreps (features that are summed over the neighbours: ``edge_irreps`` of the model
    or node_irreps), n_elements, n_edge_features, avg_num_neighbors, radial_MLP.

    Work that does not depend on the node features belongs in :meth:`prepare`: a caller whose
    geometry stays while features change (the self-consistency loop) does it once.
    """

    is_linear: bool = False
    """Whether message and skip are linear in the node features."""

    sees_elements: bool | None = None
    """Whether :meth:`functions` depend on the elements at the ends; None: there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: RadialTables | None = None
        """What takes the place of :meth:`functions` in inference."""

    def bonds(self, edges: EdgeLayout) -> Tensor:
        """The edges whose :meth:`functions` are wanted."""
        return edges.representative

    def functions(
        self, edge_feats: Tensor, cutoff: Tensor | None, *elements: Tensor
    ) -> list[Tensor]:
        """All functions of the distance, [n, n_functions] in several parts.

        Args:
            edge_feats, cutoff: as of :meth:`prepare`, of any edges.
            elements: [n] int64, of the senders and of the receivers.
        """
        raise NotImplementedError

    def prepare_functions(
        self, functions: list[Tensor], edge_attrs: Tensor, edges: EdgeLayout
    ) -> Any:
        """Like :meth:`prepare`, with :meth:`functions` of the :meth:`bonds`."""
        raise NotImplementedError

    def prepare(
        self,
        edge_attrs: Tensor,
        edge_feats: Tensor,
        edges: EdgeLayout,
        cutoff: Tensor | None = None,
    ) -> Any:
        """Return what :meth:`message` needs of the geometry; by default the arguments.

        Args:
            edge_attrs: [n_edges, edge_irreps.dim] spherical harmonics, component normalisation.
            edge_feats: [n_edges, n_edge_features] radial basis.
            edges: who is connected to whom.
            cutoff: [n_edges], to be multiplied to whatever an edge contributes; None if the
                radial basis contains it.
        """
        return PreparedGeometry(edge_attrs, edge_feats, edges, cutoff)

    @abstractmethod
    def message(
        self, node_feats: Tensor, element: Tensor, prepared: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Compute messages.

        Args:
            node_feats: [n_atoms, node_irreps.dim].
            element: [n_atoms] int64.
            prepared: what :meth:`prepare` returned.

        Returns:
            message [n_atoms, target_irreps.dim] and skip [n_atoms, hidden_irreps.dim] or None.
        """

    def forward(
        self,
        node_feats: Tensor,
        element: Tensor,
        edge_attrs: Tensor,
        edge_feats: Tensor,
        edges: EdgeLayout,
        cutoff: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`prepare` and :meth:`message` in one call."""
        # Blocks of plugins may know nothing of a cutoff; they are not handed one.
        given = {} if cutoff is None else {"cutoff": cutoff}
        prepared = self.prepare(edge_attrs, edge_feats, edges, **given)
        return self.message(node_feats, element, prepared)


set_base("interaction", Interaction)


@dataclass(frozen=True, slots=True)
class _PreparedEdges:
    """Geometry of one layer.

    Attributes:
        scale: [n_atoms, 1] or a number; what the sum over neighbours is multiplied with.
        edge_attrs: [n_edges, edge_irreps.dim].
        radial: weights of the convolution for each bond.
        edges: connectivity.
    """

    scale: Tensor | float
    edge_attrs: Tensor
    radial: Tensor
    edges: EdgeLayout


class RealAgnosticBase(Interaction):
    """Common part of the RealAgnostic blocks; not registered."""

    is_linear = True
    sees_elements = False
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
        convolution_irreps: Irreps | None = None,
    ) -> None:
        super().__init__()
        convolved = node_irreps if convolution_irreps is None else convolution_irreps
        self.linear_up = Linear(node_irreps, convolved)
        self.conv_tp = EdgeConvolution(convolved, edge_irreps, target_irreps)
        self.conv_tp_weights = MLP([n_edge_features, *radial_MLP, self.conv_tp.n_weights])
        self.linear = Linear(self.conv_tp.irreps_out, target_irreps)
        self.avg_num_neighbors = float(avg_num_neighbors)
        if self.residual:
            self.skip_tp = ElementLinear(node_irreps, hidden_irreps, n_elements)
        else:
            self.skip_tp = ElementLinear(target_irreps, target_irreps, n_elements)
        if self.density:
            self.density_fn = MLP([n_edge_features, 1])

    def prepare(
        self,
        edge_attrs: Tensor,
        edge_feats: Tensor,
        edges: EdgeLayout,
        cutoff: Tensor | None = None,
    ) -> _PreparedEdges:
        bonds = self.bonds(edges)
        cut = None if cutoff is None else cutoff.index_select(0, bonds)
        found = self.functions(edge_feats.index_select(0, bonds), cut)
        return self.prepare_functions(found, edge_attrs, edges)

    def functions(
        self, edge_feats: Tensor, cutoff: Tensor | None, *elements: Tensor
    ) -> list[Tensor]:
        """Weights of the convolution, and the density of a neighbour where there is one."""
        phi = self.conv_tp_weights.hidden(edge_feats)
        if cutoff is not None:
            phi = phi * cutoff.unsqueeze(-1)
        last = self.conv_tp_weights.last_weight()
        found = [self.conv_tp.radial_weights(phi, last).flatten(1)]
        if self.density:
            density = torch.tanh(self.density_fn(edge_feats) ** 2)
            found.append(density if cutoff is None else density * cutoff.unsqueeze(-1))
        return found

    def prepare_functions(
        self, functions: list[Tensor], edge_attrs: Tensor, edges: EdgeLayout
    ) -> _PreparedEdges:
        scale: Tensor | float = 1.0 / self.avg_num_neighbors
        if self.density:
            density = functions[1].index_select(0, edges.pair)
            scale = 1.0 / (1.0 + edges.sum_to_receivers(density))
        radial = functions[0].view(-1, len(self.conv_tp.paths), self.conv_tp.n_channels)
        return _PreparedEdges(scale, edge_attrs, radial, edges)

    def message(
        self, node_feats: Tensor, element: Tensor, prepared: _PreparedEdges
    ) -> tuple[Tensor, Tensor | None]:
        up = self.linear_up(node_feats)
        message = self.conv_tp(
            up, prepared.edge_attrs, prepared.radial, prepared.edges, self.linear
        )
        message = message * prepared.scale
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
