"""Operands and sums of the edge convolution, chunk by chunk; see ``convolution_kernel``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpmace.blocks.edges import Chunk, EdgeLayout


@dataclass(frozen=True, slots=True)
class Segment:
    """Paths that share l1 and l2.

    Attributes:
        node: components of h.
        weight: paths in R.
        column: columns of the group's products, in units of channels; m1 outer, path inner.
    """

    node: slice
    weight: slice
    column: slice

    @property
    def n_paths(self) -> int:
        return self.weight.stop - self.weight.start

    @property
    def n_node(self) -> int:
        return self.node.stop - self.node.start


@dataclass(frozen=True, slots=True)
class Group:
    """Segments that share l2.

    Attributes:
        harmonic: components of Y.
        row: rows of F; m2 outer, then the group's columns.
        n_columns: number of columns, in units of channels.
    """

    harmonic: slice
    row: slice
    n_columns: int
    segments: tuple[Segment, ...]

    @property
    def n_harmonics(self) -> int:
        return self.harmonic.stop - self.harmonic.start


@dataclass(frozen=True, slots=True)
class Convolution:
    """What a convolution needs besides its operands."""

    edges: EdgeLayout
    groups: tuple[Group, ...]
    n_rows: int
    n_weights: int

    def chunks(self, n_channels: int) -> Iterator[Chunk]:
        """Chunks whose temporaries have a size that suits the cache."""
        return self.edges.pieces(CHUNK_SIZE // n_channels)


CHUNK_SIZE = 32768
"""Slots times channels worked on at once on a CPU; measured best with 10 paths."""


@dataclass(slots=True)
class Rows:
    """What the slots of one chunk see of phi, R, h and Y (or of derivatives in their place).

    Attributes:
        phi: [n_slots, n_hidden] or None, as the others.
        r: [n_slots, n_weights, n_channels].
        h: [n_slots, n_components, n_channels].
        y: [n_chunk_atoms, width, n_harmonics], 0 in empty slots.
    """

    phi: Any
    r: Any
    h: Any
    y: Any


class Operands:
    """phi, W, h and Y, or derivatives in their place; None where there is none."""

    def __init__(
        self,
        plan: Convolution,
        phi: Tensor | None,
        weight: Tensor | None,
        h: Tensor | None,
        y: Tensor | None,
    ) -> None:
        self.plan, self.phi, self.weight = plan, phi, weight
        self.h = None if h is None else h.reshape(h.shape[0], -1)
        self.y = None if y is None else torch.cat([y, y.new_zeros(1, y.shape[1])])

    def rows(self, chunk: Chunk, n_channels: int) -> Rows:
        """Gather the rows of a chunk."""
        edges, slots = self.plan.edges, chunk.slots
        phi = None if self.phi is None else self.phi.index_select(0, edges.slot_pair[slots])
        r = None
        if phi is not None and self.weight is not None:
            r = (phi @ self.weight).view(len(phi), -1, n_channels)
        h = None if self.h is None else self.h.index_select(0, edges.slot_sender[slots])
        y = None if self.y is None else self.y.index_select(0, edges.slot_edge[slots])
        return Rows(
            phi,
            r,
            None if h is None else h.view(len(h), -1, n_channels),
            None if y is None else y.view(-1, chunk.width, y.shape[1]),
        )


def products(group: Group, pairs: list[tuple[Tensor | None, Tensor | None]]) -> Tensor:
    """Sum of ``R[path] h[m1]`` over the given (R, h): [n_slots, n_columns, n_channels]."""
    given = [(r, h) for r, h in pairs if r is not None and h is not None]
    n_slots, _, n_channels = given[0][0].shape
    out = given[0][0].new_empty(n_slots, group.n_columns, n_channels)
    for segment in group.segments:
        view = out[:, segment.column].view(n_slots, segment.n_node, segment.n_paths, n_channels)
        for index, (r, h) in enumerate(given):
            left = r[:, segment.weight].unsqueeze(1)
            right = h[:, segment.node].unsqueeze(2)
            if index == 0:
                torch.mul(left, right, out=view)
            else:
                view.addcmul_(left, right)
    return out


def add_weight_gradient(group: Group, d: Tensor, h: Tensor | None, out: Tensor | None) -> None:
    """``out[path] += sum_m1 d[m1, path] h[m1]``; nothing if an argument is None."""
    if h is None or out is None:
        return
    for segment in group.segments:
        view = d[:, segment.column].view(len(d), segment.n_node, segment.n_paths, -1)
        target, factors = out[:, segment.weight], h[:, segment.node].unsqueeze(2)
        for m in range(segment.n_node):
            target.addcmul_(view[:, m], factors[:, m])


def add_node_gradient(group: Group, d: Tensor, r: Tensor | None, out: Tensor) -> None:
    """``out[m1] += sum_path d[m1, path] R[path]``; nothing if R is None."""
    if r is None:
        return
    for segment in group.segments:
        view = d[:, segment.column].view(len(d), segment.n_node, segment.n_paths, -1)
        target, factors = out[:, segment.node], r[:, segment.weight].unsqueeze(2)
        for p in range(segment.n_paths):
            target.addcmul_(view[:, :, p], factors[:, p])


def group_rows(f: Tensor, group: Group, chunk: Chunk) -> Tensor:
    """View of F: [n_chunk_atoms, n_harmonics, n_columns * n_channels]."""
    return f[chunk.first : chunk.last, group.row].view(
        chunk.last - chunk.first, group.n_harmonics, -1
    )


def summed(group: Group, y: Tensor, product: Tensor, out: Tensor | None = None) -> Tensor:
    """Sum over neighbours of ``Y[m2] product``: [n_chunk_atoms, n_harmonics, n_columns * n]."""
    rows = product.view(y.shape[0], y.shape[1], -1)
    return torch.bmm(y[:, :, group.harmonic].transpose(1, 2), rows, out=out)


def spread(group: Group, y: Tensor, d_group: Tensor, like: Tensor) -> Tensor:
    """Adjoint of :func:`summed`: [n_slots, n_columns, n_channels]."""
    return torch.bmm(y[:, :, group.harmonic], d_group).view(len(like), -1, like.shape[2])


class Sums:
    """Gradients of phi, W, h, Y as they are summed over chunks."""

    def __init__(
        self,
        plan: Convolution,
        phi: Tensor,
        weight: Tensor,
        h: Tensor,
        y: Tensor,
        with_weight: bool,
    ) -> None:
        self.edges = plan.edges
        self.phi = torch.zeros_like(phi)
        self.weight = torch.zeros_like(weight) if with_weight else None
        self.h = h.new_zeros(h.shape[0], h.shape[1] * h.shape[2])
        self.h_shape = h.shape
        self.y = y.new_zeros(y.shape[0] + 1, y.shape[1])

    def add_harmonics(self, chunk: Chunk, group: Group, product: Tensor, d_group: Tensor) -> None:
        """Store ``sum over columns of product d_group`` (each slot occurs once)."""
        rows = product.view(len(d_group), chunk.width, -1)
        values = torch.bmm(rows, d_group.transpose(1, 2)).view(-1, group.n_harmonics)
        self.y[:, group.harmonic].index_copy_(0, self.edges.slot_edge[chunk.slots], values)

    def add_weight(self, phi: Tensor, d_r: Tensor) -> None:
        if self.weight is not None:
            self.weight.addmm_(phi.T, d_r.flatten(1))

    def add_rows(self, chunk: Chunk, d_phi: Tensor, d_h: Tensor) -> None:
        self.phi.index_add_(0, self.edges.slot_pair[chunk.slots], d_phi)
        self.h.index_add_(0, self.edges.slot_sender[chunk.slots], d_h.flatten(1))

    def result(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        return self.phi, self.weight, self.h.view(self.h_shape), self.y[:-1]
