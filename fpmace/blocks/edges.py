"""Who is connected to whom: index tables for sums over neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

SLOTS_PER_CHUNK = 1024
"""Largest number of neighbour slots of a chunk on a CPU."""

FILLING = 0.8
"""Least share of slots that an atom must fill to join a chunk that is large enough already."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Atoms ``first`` to ``last`` (in the order of ``Slots.atom_order``).

    Each has ``width`` slots for neighbours; ``slots`` is their range in the slot tables.
    """

    first: int
    last: int
    width: int
    slots: slice


@dataclass(frozen=True, slots=True)
class Slots:
    """Places for neighbours: as many for each atom of a chunk, so that sums are matrix products.

    An empty slot names the edge ``n_edges`` (one past the last).

    Attributes:
        atom_order: [n_atoms] int64, atoms by falling number of neighbours.
        atom_place: [n_atoms] int64, inverse of ``atom_order``.
        chunks: the chunks that have neighbours.
        edge, sender, pair: [n_slots] int64; the latter two are those of the atom's first edge if
            empty, so that no derivative (zero times NaN) reaches another graph.
    """

    atom_order: Tensor
    atom_place: Tensor
    chunks: tuple[Chunk, ...]
    edge: Tensor
    sender: Tensor
    pair: Tensor

    def pieces(self, max_slots: int) -> Iterator[Chunk]:
        """The chunks, cut further where they have more than ``max_slots`` slots (on a CPU)."""
        for chunk in self.chunks:
            step = max(1, max_slots // chunk.width)
            if self.edge.device.type != "cpu" or step >= chunk.last - chunk.first:
                yield chunk
                continue
            for first in range(chunk.first, chunk.last, step):
                last = min(first + step, chunk.last)
                start = chunk.slots.start + (first - chunk.first) * chunk.width
                slots = slice(start, start + (last - first) * chunk.width)
                yield Chunk(first, last, chunk.width, slots)


@dataclass(frozen=True)
class EdgeLayout:
    """Connectivity of a batch; holds integers only and is shared by all layers.

    Attributes:
        sender, receiver: [n_edges] int64; edges are sorted by receiver.
        n_atoms: number of atoms.
        pair: [n_edges] int64; the two directions of a bond share a number.
        representative: [n_pairs] int64, one edge of each pair.
    """

    sender: Tensor
    receiver: Tensor
    n_atoms: int
    pair: Tensor
    representative: Tensor

    @classmethod
    def build(
        cls, edge_index: Tensor, n_atoms: int, unit_shifts: Tensor | None = None
    ) -> EdgeLayout:
        """Number the pairs.

        Args:
            edge_index: [2, n_edges] int64, sorted by receiver (row 1).
            n_atoms: number of atoms.
            unit_shifts: [n_edges, 3] in lattice vectors; without them no pairs are sought and
                each edge is its own.
        """
        sender, receiver = edge_index[0].contiguous(), edge_index[1].contiguous()
        return cls(sender, receiver, n_atoms, *_pairs(sender, receiver, n_atoms, unit_shifts))

    def directed(self) -> EdgeLayout:
        """The same edges, each its own pair: for radial weights that differ by direction."""
        return self._directed

    @cached_property
    def _directed(self) -> EdgeLayout:
        edges = torch.arange(self.n_edges, device=self.sender.device)
        return replace(self, pair=edges, representative=edges)

    @cached_property
    def slots(self) -> Slots:
        """The neighbours in tables."""
        degree = torch.bincount(self.receiver, minlength=self.n_atoms)
        order = torch.argsort(degree, descending=True, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(self.n_atoms, device=order.device)
        limit = SLOTS_PER_CHUNK if order.device.type == "cpu" else None
        chunks = _chunks(degree[order].tolist(), limit)
        first = (degree.cumsum(0) - degree)[order]
        edge = _slot_edges(chunks, degree[order], first, self.n_edges)
        filled = _filled(chunks, edge, self.n_edges)
        return Slots(order, place, chunks, edge, self.sender[filled], self.pair[filled])

    @cached_property
    def first_edge(self) -> Tensor:
        """[n_atoms + 1] int64: where the edges of each receiver begin, and the end."""
        return _offsets(self.receiver, self.n_atoms)

    @cached_property
    def edges_of_pairs(self) -> tuple[Tensor, Tensor]:
        """Edges by pair [n_edges] int64, and where those of each pair begin [n_pairs + 1]."""
        n_pairs = len(self.representative)
        return torch.argsort(self.pair, stable=True), _offsets(self.pair, n_pairs)

    @property
    def n_edges(self) -> int:
        return self.sender.shape[0]

    def sum_to_receivers(self, values: Tensor) -> Tensor:
        """Sum [n_edges, ...] over the edges that end at each atom, to [n_atoms, ...]."""
        total = values.new_zeros(self.n_atoms, *values.shape[1:])
        return total.index_add(0, self.receiver, values)


def _offsets(numbers: Tensor, n: int) -> Tensor:
    """[n + 1] int64: how many entries are smaller than 0, 1, .. n."""
    counts = torch.bincount(numbers, minlength=n)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _chunks(degrees: list[int], limit: int | None) -> tuple[Chunk, ...]:
    """Cut atoms of falling degree into chunks of at most ``limit`` slots (at least one atom).

    A chunk of useful size also ends where slots would stay empty.
    """
    n_linked = len(degrees) - degrees.count(0)
    chunks: list[Chunk] = []
    first = slot = 0
    while first < n_linked:
        width = degrees[first]
        last = first + 1
        while last < n_linked:
            n_slots = (last - first) * width
            if limit is not None and (
                n_slots + width > limit
                or (n_slots >= limit // 8 and degrees[last] < FILLING * width)
            ):
                break
            last += 1
        n_slots = (last - first) * width
        chunks.append(Chunk(first, last, width, slice(slot, slot + n_slots)))
        first, slot = last, slot + n_slots
    return tuple(chunks)


def _slot_edges(
    chunks: tuple[Chunk, ...], degree: Tensor, first_edge: Tensor, n_edges: int
) -> Tensor:
    parts = [degree.new_zeros(0)]
    for chunk in chunks:
        atoms = slice(chunk.first, chunk.last)
        neighbour = torch.arange(chunk.width, device=degree.device)
        edge = first_edge[atoms, None] + neighbour
        parts.append(edge.masked_fill(neighbour >= degree[atoms, None], n_edges).reshape(-1))
    return torch.cat(parts)


def _filled(chunks: tuple[Chunk, ...], slot_edge: Tensor, n_edges: int) -> Tensor:
    """The edge of each slot; in empty ones the first edge of the same atom."""
    parts = [slot_edge.new_zeros(0)]
    for chunk in chunks:
        table = slot_edge[chunk.slots].view(-1, chunk.width)
        parts.append(torch.where(table == n_edges, table[:, :1], table).reshape(-1))
    return torch.cat(parts)


def _pairs(
    sender: Tensor, receiver: Tensor, n_atoms: int, unit_shifts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Number the bonds: both directions (i -> j, S) and (j -> i, -S) get the same number.

    An edge without its reverse is a bond of its own.
    """
    edges = torch.arange(sender.shape[0], device=sender.device)
    if unit_shifts is None or sender.shape[0] == 0:
        return edges, edges
    shifts = unit_shifts.round().to(torch.int64)
    reach = int(shifts.abs().max())
    base = 2 * reach + 1
    if n_atoms * n_atoms * base**3 >= 2**62:
        return edges, edges
    code = (shifts[:, 0] * base + shifts[:, 1]) * base + shifts[:, 2]
    backward = (sender > receiver) | ((sender == receiver) & (code < 0))
    code = torch.where(backward, -code, code) + base**3 // 2
    low, high = torch.minimum(sender, receiver), torch.maximum(sender, receiver)
    numbers, pair = torch.unique((low * n_atoms + high) * base**3 + code, return_inverse=True)
    first = torch.full_like(numbers, sender.shape[0])
    return pair, first.scatter_reduce(0, pair, edges, "amin")
