"""Spread and gather: sums of spline derivatives between atoms and a mesh, adjoint to each other.

Both take all derivatives d^a of the product of three splines with |a| <= degree. Their own
derivatives by the coordinates are the same sums with one derivative more, so that they exist to
any order (of the splines' smoothness, p - 2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fpmace.electrostatics.mesh.splines import spline_values
from fpmace.electrostatics.tables import numbers

_BLOCK = 1 << 20
"""Mesh values held at once around the atoms of a chunk."""

Exponents = tuple[int, int, int]


@lru_cache(maxsize=16)
def exponents(degree: int) -> tuple[Exponents, ...]:
    """Derivatives (a, b, c) along the axes of the mesh, by a + b + c up to the degree."""
    triples = (
        (a, n - a - c, c)
        for n in range(degree + 1)
        for c in range(n + 1)
        for a in range(n - c + 1)
    )
    return tuple(sorted(triples, key=sum))


@lru_cache(maxsize=16)
def _raised(degree: int) -> tuple[tuple[int, ...], ...]:
    """Where the derivatives up to a degree lie, taken once more along each axis."""
    place = {item: index for index, item in enumerate(exponents(degree + 1))}
    return tuple(
        tuple(
            place[(a + (axis == 0), b + (axis == 1), c + (axis == 2))]
            for a, b, c in exponents(degree)
        )
        for axis in range(3)
    )


def _index(values: tuple[int, ...], like: Tensor) -> Tensor:
    return numbers(values, like.new_empty(0, dtype=torch.int64))


class Stencil:
    """The p^3 mesh points around each atom and the splines there, computed once.

    Holds no history: it says where atoms lie, derivatives by their coordinates go through
    :func:`gather` and :func:`spread`.
    """

    def __init__(
        self, coordinates: Tensor, shape: tuple[int, int, int], order: int, graph: Tensor
    ) -> None:
        """Look up where atoms lie.

        Args:
            coordinates: [n, 3] in mesh spacings; points beyond the mesh are wrapped into it.
            shape: points of the mesh along its axes.
            order: p of the splines.
            graph: [n] which of the meshes behind each other.
        """
        coordinates = coordinates.detach()
        floor = coordinates.floor()
        self._fraction = coordinates - floor
        self._weights: Tensor | None = None
        self.order, self.n_points = order, shape[0] * shape[1] * shape[2]
        ahead = torch.arange(1 - order // 2, order // 2 + 1, device=coordinates.device)
        points = floor.long()[..., None] + ahead
        x, y, z = (points[:, axis] % shape[axis] for axis in range(3))
        row = x[:, :, None] * shape[1] + y[:, None, :]
        flat = row[..., None] * shape[2] + z[:, None, None, :]
        self.index = (flat + (graph * self.n_points)[:, None, None, None]).flatten(1)

    def weights(self, degree: int) -> Tensor:
        """[n, 3, >= degree + 1, p] spline derivatives along each axis."""
        if self._weights is None or self._weights.shape[2] <= degree:
            self._weights = spline_values(self._fraction, self.order, degree)
        return self._weights

    def chunks(self, degree: int, n_channels: int) -> list[tuple[Tensor, Tensor, slice]]:
        """Index [m, p^3], weights [m, 3, degree + 1, p] and atoms, some atoms at a time."""
        size = max(1, _BLOCK // (self.index.shape[1] * n_channels))
        weights = self.weights(degree)[:, :, : degree + 1]
        starts = range(0, len(self.index), size)
        slices = [slice(start, start + size) for start in starts]
        return [(self.index[atoms], weights[atoms], atoms) for atoms in slices]


def gather(mesh: Tensor, coordinates: Tensor, stencil: Stencil, degree: int) -> Tensor:
    """Derivatives of the functions that splines make of mesh values, at the atoms.

    Args:
        mesh: [n_points, n_channels] values.
        coordinates: [n, 3] in mesh spacings, those of the stencil.
        stencil: where they lie.
        degree: highest derivative.

    Returns:
        [n, n_derivatives, n_channels], derivatives in the order of :func:`exponents`.
    """
    apply: Callable[..., Tensor] = _Gather.apply
    return apply(mesh, coordinates, stencil, degree)


def spread(
    values: Tensor, coordinates: Tensor, stencil: Stencil, degree: int, n_points: int
) -> Tensor:
    """The adjoint of :func:`gather`: [n, n_derivatives, n_channels] -> [n_points, n_channels]."""
    apply: Callable[..., Tensor] = _Spread.apply
    return apply(values, coordinates, stencil, degree, n_points)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(mesh: Tensor, coordinates: Tensor, stencil: Stencil, degree: int) -> Tensor:
        return _gather(mesh, stencil, degree)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        mesh, coordinates, ctx.stencil, ctx.degree = inputs
        ctx.save_for_backward(mesh, coordinates)
        ctx.save_for_forward(mesh, coordinates)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mesh, coordinates = ctx.saved_tensors
        by_mesh = by_coordinates = None
        if ctx.needs_input_grad[0]:
            by_mesh = spread(grad, coordinates, ctx.stencil, ctx.degree, len(mesh))
        if ctx.needs_input_grad[1]:
            higher = gather(mesh, coordinates, ctx.stencil, ctx.degree + 1)
            by_coordinates = _contract(grad, higher, ctx.degree)
        return by_mesh, by_coordinates, None, None

    @staticmethod
    def jvp(ctx: Any, mesh_tangent: Tensor, tangent: Tensor, _: None, __: None) -> Tensor:
        mesh, coordinates = ctx.saved_tensors
        found = torch.zeros((), dtype=mesh.dtype, device=mesh.device)
        if mesh_tangent is not None:
            found = found + gather(mesh_tangent, coordinates, ctx.stencil, ctx.degree)
        if tangent is not None:
            higher = gather(mesh, coordinates, ctx.stencil, ctx.degree + 1)
            for axis, rows in enumerate(_raised(ctx.degree)):
                along = tangent[:, axis, None, None]
                found = found + along * higher.index_select(1, _index(rows, higher))
        return found


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(
        values: Tensor, coordinates: Tensor, stencil: Stencil, degree: int, n_points: int
    ) -> Tensor:
        return _spread(values, stencil, degree, n_points)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, coordinates, ctx.stencil, ctx.degree, ctx.n_points = inputs
        ctx.save_for_backward(values, coordinates)
        ctx.save_for_forward(values, coordinates)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, coordinates = ctx.saved_tensors
        moved = ctx.needs_input_grad[1]
        higher = gather(grad, coordinates, ctx.stencil, ctx.degree + moved)
        by_values = higher[:, : values.shape[1]] if ctx.needs_input_grad[0] else None
        by_coordinates = _contract(values, higher, ctx.degree) if moved else None
        return by_values, by_coordinates, None, None, None

    @staticmethod
    def jvp(ctx: Any, value_tangent: Tensor, tangent: Tensor, *_: None) -> Tensor:
        values, coordinates = ctx.saved_tensors
        found = torch.zeros((), dtype=values.dtype, device=values.device)
        if value_tangent is not None:
            found = found + spread(
                value_tangent, coordinates, ctx.stencil, ctx.degree, ctx.n_points
            )
        if tangent is not None:
            higher = values.new_zeros(len(values), len(exponents(ctx.degree + 1)), values.shape[2])
            for axis, rows in enumerate(_raised(ctx.degree)):
                along = tangent[:, axis, None, None]
                higher = higher.index_add(1, _index(rows, higher), along * values)
            found = found + spread(higher, coordinates, ctx.stencil, ctx.degree + 1, ctx.n_points)
        return found


def _contract(values: Tensor, higher: Tensor, degree: int) -> Tensor:
    """sum_a values_a higher_(a + e) for each axis e: [n, 3]."""
    rows = (higher.index_select(1, _index(axis, higher)) for axis in _raised(degree))
    return torch.stack([(values * row).sum((1, 2)) for row in rows], dim=1)


@lru_cache(maxsize=16)
def _places(degree: int) -> tuple[int, ...]:
    """Where the derivatives lie among all products of derivatives along the axes."""
    n = degree + 1
    return tuple((a * n + b) * n + c for a, b, c in exponents(degree))


def _gather(mesh: Tensor, stencil: Stencil, degree: int) -> Tensor:
    """One axis after the other: p^3 (d + 1) products for the first, fewer for the others."""
    p, n, n_channels = stencil.order, degree + 1, mesh.shape[1]
    chosen, found = _index(_places(degree), mesh), []
    for index, weights, _ in stencil.chunks(degree, n_channels):
        m = len(index)
        block = mesh.index_select(0, index.flatten()).view(m, p, p * p * n_channels)
        block = torch.bmm(weights[:, 0], block).view(m, n, p, p * n_channels)
        block = torch.matmul(weights[:, 1, None], block).view(m, n * n, p, n_channels)
        block = block.transpose(2, 3).reshape(m, n * n * n_channels, p)
        block = torch.bmm(block, weights[:, 2].transpose(1, 2)).view(m, n * n, n_channels, n)
        block = block.transpose(2, 3).reshape(m, n * n * n, n_channels)
        found.append(block.index_select(1, chosen))
    return torch.cat(found) if found else mesh.new_zeros(0, len(chosen), n_channels)


def _spread(values: Tensor, stencil: Stencil, degree: int, n_points: int) -> Tensor:
    p, n, n_channels = stencil.order, degree + 1, values.shape[2]
    chosen = _index(_places(degree), values)
    mesh = values.new_zeros(n_points, n_channels)
    for index, weights, atoms in stencil.chunks(degree, n_channels):
        m = len(index)
        block = values.new_zeros(m, n * n * n, n_channels).index_copy_(1, chosen, values[atoms])
        block = block.view(m, n * n, n, n_channels).transpose(2, 3)
        block = torch.bmm(block.reshape(m, n * n * n_channels, n), weights[:, 2])
        block = block.view(m, n * n, n_channels, p).transpose(2, 3)
        block = block.reshape(m, n, n, p * n_channels)
        block = torch.matmul(weights[:, 1, None].transpose(2, 3), block)
        block = torch.bmm(weights[:, 0].transpose(1, 2), block.view(m, n, p * p * n_channels))
        rows = index.flatten()[:, None].expand(-1, n_channels)
        mesh.scatter_add_(0, rows, block.view(-1, n_channels))
    return mesh
