"""What the layers of a backbone see of the edges, whole or in blocks of receivers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fpmace.blocks.edges import EdgeLayout
from fpmace.blocks.interaction import Interaction
from fpmace.blocks.product import EquivariantProductBasis
from fpmace.models.geometry import Geometry

if TYPE_CHECKING:
    from fpmace.models.backbone import Backbone


@dataclass(frozen=True)
class EdgeFeatures:
    """Harmonics and radial functions of edges, each made when first asked for.

    Attributes:
        backbone: has what makes them.
        vectors, lengths: [n_edges, 3], [n_edges] Angstrom.
        element: [n_atoms] int64, of the atoms that ``edges`` speaks of.
        edges: connectivity.
    """

    backbone: Backbone
    vectors: Tensor
    lengths: Tensor
    element: Tensor
    edges: EdgeLayout

    @cached_property
    def harmonics(self) -> Tensor:
        """[n_edges, (max_ell+1)^2]."""
        directions = self.vectors / self.lengths.unsqueeze(-1)
        if self.backbone.vector_order == "yzx":
            directions = directions.roll(-1, dims=-1)
        made: Tensor = self.backbone.spherical_harmonics(directions)
        return made

    @cached_property
    def radial(self) -> tuple[Tensor, Tensor | None]:
        """Radial functions [n_edges, num_bessel], and the cutoff [n_edges] if it stands apart."""
        ends = self.element[self.edges.sender], self.element[self.edges.receiver]
        made: tuple[Tensor, Tensor | None] = self.backbone.radial_embedding(self.lengths, *ends)
        return made

    def layer(
        self, interaction: Interaction, product: EquivariantProductBasis, node_feats: Tensor
    ) -> Tensor:
        """Features [n_atoms, ...] of the next layer."""
        message, skip = self.message(interaction, node_feats)
        made: Tensor = product(message, skip, self.element)
        return made

    def message(
        self, interaction: Interaction, node_feats: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Message and skip of an interaction, by its tables if it has some."""
        if interaction.tables is None:
            feats, cutoff = self.radial
            made: tuple[Tensor, Tensor | None] = interaction(
                node_feats, self.element, self.harmonics, feats, self.edges, cutoff
            )
            return made
        bonds, edges = interaction.bonds(self.edges), self.edges
        ends = self.element[edges.sender[bonds]], self.element[edges.receiver[bonds]]
        functions = interaction.tables(self.lengths.index_select(0, bonds), *ends)
        prepared = interaction.prepare_functions(functions, self.harmonics, edges)
        return interaction.message(node_feats, self.element, prepared)


@dataclass(frozen=True)
class Block:
    """Receivers that are worked on together.

    Attributes:
        n_receivers: number of receivers.
        atoms: [n_local] int64, the receivers and then the other atoms that they see.
        edges: connectivity of the local atoms.
    """

    n_receivers: int
    atoms: Tensor
    edges: EdgeLayout


class BlockedEdges:
    """Layers evaluated block by block; what a block makes is made again for its derivatives.

    Args:
        edges_at_once: about how many edges a block has.
    """

    def __init__(self, backbone: Backbone, geometry: Geometry, edges_at_once: int) -> None:
        self.backbone, self.geometry = backbone, geometry
        self.blocks = list(_blocks(geometry.edges, edges_at_once))
        sizes = [block.edges.n_edges for block in self.blocks]
        self.vectors = geometry.edge_vectors.split(sizes)
        self.lengths = geometry.edge_lengths.split(sizes)

    def layer(
        self, interaction: Interaction, product: EquivariantProductBasis, node_feats: Tensor
    ) -> Tensor:
        """Features [n_atoms, ...] of the next layer."""

        def rows(block: Block, vectors: Tensor, lengths: Tensor, node_feats: Tensor) -> Tensor:
            element = self.geometry.element[block.atoms]
            features = EdgeFeatures(self.backbone, vectors, lengths, element, block.edges)
            local = node_feats.index_select(0, block.atoms)
            message, skip = features.message(interaction, local)
            n = block.n_receivers
            skip = None if skip is None else skip[:n]
            made: Tensor = product(message[:n], skip, element[:n])
            return made

        pieces = [
            checkpoint(
                rows, block, x, r, node_feats, use_reentrant=False, preserve_rng_state=False
            )
            for block, x, r in zip(self.blocks, self.vectors, self.lengths, strict=True)
        ]
        return torch.cat(pieces)


def _blocks(edges: EdgeLayout, edges_at_once: int) -> Iterator[Block]:
    """Consecutive receivers with about ``edges_at_once`` edges, at least one receiver each."""
    starts = edges.first_edge.tolist()
    first = 0
    while first < edges.n_atoms:
        last = first + 1
        while last < edges.n_atoms and starts[last + 1] - starts[first] <= edges_at_once:
            last += 1
        yield _block(edges, first, last, slice(starts[first], starts[last]))
        first = last


def _block(edges: EdgeLayout, first: int, last: int, part: slice) -> Block:
    sender = edges.sender[part]
    seen = torch.unique(sender)
    receivers = torch.arange(first, last, device=sender.device)
    atoms = torch.cat([receivers, seen[(seen < first) | (seen >= last)]])
    place = torch.empty(edges.n_atoms, dtype=torch.int64, device=sender.device)
    place[atoms] = torch.arange(len(atoms), device=sender.device)
    numbers, pair = torch.unique(edges.pair[part], return_inverse=True)
    order = torch.arange(len(pair), device=sender.device)
    representative = torch.full_like(numbers, len(pair)).scatter_reduce(0, pair, order, "amin")
    layout = EdgeLayout(
        place[sender], edges.receiver[part] - first, len(atoms), pair, representative
    )
    return Block(last - first, atoms, layout)
