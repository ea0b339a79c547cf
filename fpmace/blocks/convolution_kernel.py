"""The edge convolution as one operation with hand-written first and second derivatives.

With R = phi W the radial weights of an edge, h the features of its sender and Y its harmonics,

``F[i, m2, m1, path, u] = sum over edges j -> i of R[path, u] h[j, u, m1] Y[m2]``

for each path (l1, l2 -> l3); coupling m1 and m2 to m3 is left to the atoms, where it is cheap.
F is linear in each of R, h and Y, so all derivatives are convolutions of the same kind. Edges are
worked on in chunks: temporaries stay in the cache, and nothing per edge is kept for the backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fpmace.blocks.convolution_terms import (
    Convolution,
    Operands,
    Rows,
    Sums,
    add_node_gradient,
    add_weight_gradient,
    group_rows,
    products,
    spread,
    summed,
)


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


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, phi: Tensor, weight: Tensor, h: Tensor, y: Tensor, plan: Convolution
    ) -> Tensor:
        ctx.save_for_backward(phi, weight, h, y)
        ctx.plan = plan
        n_channels = h.shape[2]
        operands = Operands(plan, phi, weight, h, y)
        out = h.new_zeros(plan.edges.n_atoms, plan.n_rows, n_channels)
        for chunk in plan.chunks(n_channels):
            rows = operands.rows(chunk, n_channels)
            for group in plan.groups:
                product = products(group, [(rows.r, rows.h)])
                summed(group, rows.y, product, out=group_rows(out, group, chunk))
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
        operands = Operands(plan, phi, weight, h, y)
        sums = Sums(plan, phi, weight, h, y, needs_weight)
        d_rows = d_f.index_select(0, plan.edges.atom_order)
        for chunk in plan.chunks(n_channels):
            rows = operands.rows(chunk, n_channels)
            d_r, d_h = torch.zeros_like(rows.r), torch.zeros_like(rows.h)
            for group in plan.groups:
                d_group = group_rows(d_rows, group, chunk)
                sums.add_harmonics(chunk, group, products(group, [(rows.r, rows.h)]), d_group)
                d_product = spread(group, rows.y, d_group, rows.r)
                add_weight_gradient(group, d_product, rows.h, d_r)
                add_node_gradient(group, d_product, rows.r, d_h)
            sums.add_weight(rows.phi, d_r)
            sums.add_rows(chunk, d_r.flatten(1) @ weight.T, d_h)
        return sums.result()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        phi, weight, h, y, d_f = ctx.saved_tensors
        grads = _second_derivative(phi, weight, h, y, d_f, tangents, ctx.plan)
        return (*grads, None, None)


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
    R = phi W, h and Y; hence the products below. ``dot`` marks derivatives along the tangents.
    """
    n_channels = h.shape[2]
    operands, dots = Operands(plan, phi, weight, h, y), Operands(plan, *tangents)
    sums = Sums(plan, phi, weight, h, y, True)
    grad_d_f = torch.zeros_like(d_f)
    d_rows = d_f.index_select(0, plan.edges.atom_order)
    for chunk in plan.chunks(n_channels):
        rows, dot = operands.rows(chunk, n_channels), dots.rows(chunk, n_channels)
        dot.r = _r_dot(rows, dot, weight, dots.weight)
        g_r, g_h = torch.zeros_like(rows.r), torch.zeros_like(rows.h)
        g_r_dot = None if dot.r is None else torch.zeros_like(rows.r)
        for group in plan.groups:
            d_group = group_rows(d_rows, group, chunk)
            out = group_rows(grad_d_f, group, chunk)
            if dot.r is not None or dot.h is not None:
                change = products(group, [(dot.r, rows.h), (rows.r, dot.h)])
                out += summed(group, rows.y, change)
                sums.add_harmonics(chunk, group, change, d_group)
                d_product = spread(group, rows.y, d_group, rows.r)
                add_weight_gradient(group, d_product, rows.h, g_r_dot)
                add_weight_gradient(group, d_product, dot.h, g_r)
                add_node_gradient(group, d_product, dot.r, g_h)
            if dot.y is not None:
                out += summed(group, dot.y, products(group, [(rows.r, rows.h)]))
                d_change = spread(group, dot.y, d_group, rows.r)
                add_weight_gradient(group, d_change, rows.h, g_r)
                add_node_gradient(group, d_change, rows.r, g_h)
        d_phi = g_r.flatten(1) @ weight.T
        sums.add_weight(rows.phi, g_r)
        if g_r_dot is not None and dot.phi is not None:
            sums.add_weight(dot.phi, g_r_dot)
        if g_r_dot is not None and dots.weight is not None:
            d_phi += g_r_dot.flatten(1) @ dots.weight.T
        sums.add_rows(chunk, d_phi, g_h)
    return (*sums.result(), grad_d_f.index_select(0, plan.edges.atom_place))


def _r_dot(rows: Rows, dot: Rows, weight: Tensor, weight_dot: Tensor | None) -> Tensor | None:
    """Derivative of R = phi W along the tangents of phi and W."""
    total: Tensor | None = None
    for phi, matrix in ((dot.phi, weight), (rows.phi, weight_dot)):
        if phi is not None and matrix is not None:
            term = phi @ matrix
            total = term if total is None else total + term
    return None if total is None or rows.r is None else total.view(rows.r.shape)
