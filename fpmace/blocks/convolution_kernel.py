"""The edge convolution as one operation with hand-written first and second derivatives.

With R = phi W the radial weights of an edge, h the features of its sender and Y its harmonics,

``F[i, m2, m1, path, u] = sum over edges j -> i of R[path, u] h[j, u, m1] Y[m2]``

for each path (l1, l2 -> l3); coupling m1 and m2 to m3 is left to the atoms, where it is cheap.
F is linear in each of R, h and Y, so all derivatives are convolutions of the same kind. Edges are
worked on in chunks: temporaries stay in the cache, and nothing per edge is kept for the backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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


def convolve(
    phi: Tensor, weight: Tensor, h: Tensor, harmonics: Tensor, plan: Convolution
) -> Tensor:
    """Evaluate F; twice differentiable.

    Args:
        phi: [n_pairs, n_hidden] last hidden layer of the radial network, one row per bond.
        weight: [n_hidden, n_weights * n_channels] last layer; columns in the order of the groups.
        h: [n_atoms, n_components, n_channels] features of the senders.
        harmonics: [n_edges, (max_ell+1)^2].
        plan: connectivity and paths.

    Returns:
        [n_atoms, n_rows, n_channels].
    """
    return _Forward.apply(phi, weight, h, harmonics, plan)


class _Operands:
    """phi, W, h and Y (or derivatives in their place); ``chunk`` gathers the rows of a chunk."""

    def __init__(
        self, phi: Tensor | None, weight: Tensor | None, h: Tensor | None, y: Tensor | None
    ) -> None:
        self.phi, self.weight = phi, weight
        self.h = None if h is None else h.reshape(h.shape[0], -1)
        self.y = None if y is None else torch.cat([y, y.new_zeros(1, y.shape[1])])

    def phi_rows(self, plan: Convolution, chunk: Chunk) -> Tensor:
        assert self.phi is not None
        return self.phi.index_select(0, plan.edges.slot_pair[chunk.slots])

    def h_rows(self, plan: Convolution, chunk: Chunk, n_channels: int) -> Tensor:
        assert self.h is not None
        rows = self.h.index_select(0, plan.edges.slot_sender[chunk.slots])
        return rows.view(rows.shape[0], -1, n_channels)

    def y_rows(self, plan: Convolution, chunk: Chunk) -> Tensor:
        assert self.y is not None
        rows = self.y.index_select(0, plan.edges.slot_edge[chunk.slots])
        return rows.view(chunk.last - chunk.first, chunk.width, -1)


def _products(group: Group, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum of ``R[path] h[m1]`` over the given (R, h): [n_slots, n_columns, n_channels]."""
    n_slots, _, n_channels = pairs[0][0].shape
    out = pairs[0][0].new_empty(n_slots, group.n_columns, n_channels)
    for segment in group.segments:
        view = out[:, segment.column].view(n_slots, segment.n_node, segment.n_paths, n_channels)
        for index, (r, h) in enumerate(pairs):
            left = r[:, segment.weight].unsqueeze(1)
            right = h[:, segment.node].unsqueeze(2)
            if index == 0:
                torch.mul(left, right, out=view)
            else:
                view.addcmul_(left, right)
    return out


def _add_weight_gradient(group: Group, d: Tensor, h: Tensor, out: Tensor) -> None:
    """``out[path] += sum_m1 d[m1, path] h[m1]``."""
    for segment in group.segments:
        view = d[:, segment.column].view(len(d), segment.n_node, segment.n_paths, -1)
        target = out[:, segment.weight]
        for m in range(segment.n_node):
            target.addcmul_(view[:, m], h[:, segment.node][:, m : m + 1])


def _add_node_gradient(group: Group, d: Tensor, r: Tensor, out: Tensor) -> None:
    """``out[m1] += sum_path d[m1, path] R[path]``."""
    for segment in group.segments:
        view = d[:, segment.column].view(len(d), segment.n_node, segment.n_paths, -1)
        target = out[:, segment.node]
        for p in range(segment.n_paths):
            target.addcmul_(view[:, :, p], r[:, segment.weight][:, p : p + 1])


def _group_rows(f: Tensor, group: Group, chunk: Chunk) -> Tensor:
    """View of F: [chunk atoms, n_harmonics, n_columns * n_channels]."""
    return f[chunk.first : chunk.last, group.row].view(
        chunk.last - chunk.first, group.n_harmonics, -1
    )


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, phi: Tensor, weight: Tensor, h: Tensor, y: Tensor, plan: Convolution
    ) -> Tensor:
        ctx.save_for_backward(phi, weight, h, y)
        ctx.plan = plan
        n_channels = h.shape[2]
        operands = _Operands(phi, weight, h, y)
        out = h.new_zeros(plan.edges.n_atoms, plan.n_rows, n_channels)
        for chunk in plan.chunks(n_channels):
            r = (operands.phi_rows(plan, chunk) @ weight).view(-1, plan.n_weights, n_channels)
            hs = operands.h_rows(plan, chunk, n_channels)
            ys = operands.y_rows(plan, chunk)
            for group in plan.groups:
                product = _products(group, [(r, hs)]).view(len(ys), chunk.width, -1)
                torch.bmm(
                    ys[:, :, group.harmonic].transpose(1, 2),
                    product,
                    out=_group_rows(out, group, chunk),
                )
        return out.index_select(0, plan.edges.atom_place)

    @staticmethod
    def backward(ctx: Any, d_f: Tensor) -> tuple[Tensor | None, ...]:
        phi, weight, h, y = ctx.saved_tensors
        grads = _Backward.apply(phi, weight, h, y, d_f, ctx.plan, ctx.needs_input_grad[1])
        return (*grads, None)


class _Backward(torch.autograd.Function):
    """Gradients of phi, W, h and Y, given the gradient of F."""

    @staticmethod
    def forward(
        ctx: Any,
        phi: Tensor,
        weight: Tensor,
        h: Tensor,
        y: Tensor,
        d_f: Tensor,
        plan: Convolution,
        needs_weight: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(phi, weight, h, y, d_f)
        ctx.plan = plan
        n_channels = h.shape[2]
        operands = _Operands(phi, weight, h, y)
        sums = _Sums(phi, weight, h, y, needs_weight)
        d_rows = d_f.index_select(0, plan.edges.atom_order)
        for chunk in plan.chunks(n_channels):
            phis = operands.phi_rows(plan, chunk)
            r = (phis @ weight).view(-1, plan.n_weights, n_channels)
            hs = operands.h_rows(plan, chunk, n_channels)
            ys = operands.y_rows(plan, chunk)
            d_r, d_h = torch.zeros_like(r), torch.zeros_like(hs)
            for group in plan.groups:
                d_group = _group_rows(d_rows, group, chunk)
                product = _products(group, [(r, hs)]).view(len(ys), chunk.width, -1)
                sums.add_harmonics(plan, chunk, group, product @ d_group.transpose(1, 2))
                d_product = (ys[:, :, group.harmonic] @ d_group).view(
                    len(r), group.n_columns, n_channels
                )
                _add_weight_gradient(group, d_product, hs, d_r)
                _add_node_gradient(group, d_product, r, d_h)
            flat = d_r.view(len(d_r), -1)
            sums.add_rows(plan, chunk, flat @ weight.T, d_h)
            if sums.weight is not None:
                sums.weight.addmm_(phis.T, flat)
        return sums.result()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        phi, weight, h, y, d_f = ctx.saved_tensors
        grads = _second_derivative(phi, weight, h, y, d_f, tangents, ctx.plan)
        return (*grads, None, None)


class _Sums:
    """Gradients of phi, W, h, Y as they are summed over chunks."""

    def __init__(
        self, phi: Tensor, weight: Tensor, h: Tensor, y: Tensor, with_weight: bool
    ) -> None:
        self.phi = torch.zeros_like(phi)
        self.weight = torch.zeros_like(weight) if with_weight else None
        self.h = h.new_zeros(h.shape[0], h.shape[1] * h.shape[2])
        self.h_shape = h.shape
        self.y = y.new_zeros(y.shape[0] + 1, y.shape[1])

    def add_harmonics(self, plan: Convolution, chunk: Chunk, group: Group, values: Tensor) -> None:
        """Store the gradient of the group's harmonics (each slot occurs once)."""
        rows = plan.edges.slot_edge[chunk.slots]
        self.y[:, group.harmonic].index_copy_(0, rows, values.reshape(-1, group.n_harmonics))

    def add_rows(self, plan: Convolution, chunk: Chunk, d_phi: Tensor, d_h: Tensor) -> None:
        self.phi.index_add_(0, plan.edges.slot_pair[chunk.slots], d_phi)
        self.h.index_add_(0, plan.edges.slot_sender[chunk.slots], d_h.view(len(d_h), -1))

    def result(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        return self.phi, self.weight, self.h.view(self.h_shape), self.y[:-1]


def _second_derivative(
    phi: Tensor,
    weight: Tensor,
    h: Tensor,
    y: Tensor,
    d_f: Tensor,
    tangents: tuple[Tensor | None, ...],
    plan: Convolution,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Gradients of ``sum of tangents * first gradients`` w.r.t. phi, W, h, Y and d_f.

    That sum is the derivative of <d_f, F(phi, W, h, Y)> along the tangents, and F is linear in
    R = phi W, h and Y; hence the products below.
    """
    n_channels = h.shape[2]
    operands, dots = _Operands(phi, weight, h, y), _Operands(*tangents)
    sums = _Sums(phi, weight, h, y, True)
    grad_d_f = torch.zeros_like(d_f)
    d_rows = d_f.index_select(0, plan.edges.atom_order)
    for chunk in plan.chunks(n_channels):
        phis = operands.phi_rows(plan, chunk)
        r = (phis @ weight).view(-1, plan.n_weights, n_channels)
        hs, ys = operands.h_rows(plan, chunk, n_channels), operands.y_rows(plan, chunk)
        phi_dot = None if dots.phi is None else dots.phi_rows(plan, chunk)
        r_dot = _r_dot(phis, phi_dot, weight, dots.weight, n_channels)
        h_dot = None if dots.h is None else dots.h_rows(plan, chunk, n_channels)
        y_dot = None if dots.y is None else dots.y_rows(plan, chunk)
        g_r, g_h = torch.zeros_like(r), torch.zeros_like(hs)
        g_r_dot = None if r_dot is None else torch.zeros_like(r)
        changes = [(a, b) for a, b in ((r_dot, hs), (r, h_dot)) if a is not None and b is not None]
        for group in plan.groups:
            d_group = _group_rows(d_rows, group, chunk)
            out = _group_rows(grad_d_f, group, chunk)
            shape = (len(r), group.n_columns, n_channels)
            if changes:
                change = _products(group, changes).view(len(ys), chunk.width, -1)
                out += ys[:, :, group.harmonic].transpose(1, 2) @ change
                sums.add_harmonics(plan, chunk, group, change @ d_group.transpose(1, 2))
                d_product = (ys[:, :, group.harmonic] @ d_group).view(shape)
                if g_r_dot is not None and r_dot is not None:
                    _add_weight_gradient(group, d_product, hs, g_r_dot)
                    _add_node_gradient(group, d_product, r_dot, g_h)
                if h_dot is not None:
                    _add_weight_gradient(group, d_product, h_dot, g_r)
            if y_dot is not None:
                product = _products(group, [(r, hs)]).view(len(ys), chunk.width, -1)
                out += y_dot[:, :, group.harmonic].transpose(1, 2) @ product
                d_change = (y_dot[:, :, group.harmonic] @ d_group).view(shape)
                _add_weight_gradient(group, d_change, hs, g_r)
                _add_node_gradient(group, d_change, r, g_h)
        flat = g_r.view(len(g_r), -1)
        d_phi = flat @ weight.T
        assert sums.weight is not None
        sums.weight.addmm_(phis.T, flat)
        if g_r_dot is not None:
            flat_dot = g_r_dot.view(len(g_r_dot), -1)
            if phi_dot is not None:
                sums.weight.addmm_(phi_dot.T, flat_dot)
            if dots.weight is not None:
                d_phi += flat_dot @ dots.weight.T
        sums.add_rows(plan, chunk, d_phi, g_h)
    d_phi, d_weight, d_h, d_y = sums.result()
    return d_phi, d_weight, d_h, d_y, grad_d_f.index_select(0, plan.edges.atom_place)


def _r_dot(
    phi: Tensor, phi_dot: Tensor | None, weight: Tensor, weight_dot: Tensor | None, n_channels: int
) -> Tensor | None:
    terms: Iterator[Tensor] = (
        a @ b for a, b in ((phi_dot, weight), (phi, weight_dot)) if a is not None and b is not None
    )
    total: Tensor | None = None
    for term in terms:
        total = term if total is None else total + term
    return None if total is None else total.view(len(phi), -1, n_channels)
