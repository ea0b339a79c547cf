"""Spread and gather: sums of spline derivatives between atoms and a mesh, adjoint to each other.

Both take all derivatives d^a of the product of three splines with |a| <= degree. Their own
derivatives by the coordinates are the same sums with one derivative more, so that they exist to
any order (of the splines' smoothness, p - 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fpmace.electrostatics.mesh.splines import spline_values
from fpmace.electrostatics.tables import numbers

_BLOCK = 1 << 19
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
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self.order, self.n_points = order, shape[0] * shape[1] * shape[2]
        ahead = torch.arange(1 - order // 2, order // 2 + 1, device=coordinates.device)
        points = floor.long()[..., None] + ahead
        x, y, z = (points[:, axis] % shape[axis] for axis in range(3))
        row = x[:, :, None] * shape[1] + y[:, None, :]
        flat = row[..., None] * shape[2] + z[:, None, None, :]
        self.index = (flat + (graph * self.n_points)[:, None, None, None]).flatten(1)

    def chunks(self, degree: int) -> Iterator[tuple[Tensor, Tensor, Tensor, slice]]:
        """Some atoms at a time: index, splines in the plane and along z, and which atoms.

        Returns:
            [m p^3], [m, n_plane, p^2] (pairs of derivatives in the order of :func:`_plane`),
            [m, degree + 1, p].
        """
        plane, along = self._splines(degree)
        size = max(1, _BLOCK // self.index.shape[1])
        for start in range(0, len(self.index), size):
            atoms = slice(start, start + size)
            yield self.index[atoms].flatten(), plane[atoms], along[atoms], atoms

    def _splines(self, degree: int) -> tuple[Tensor, Tensor]:
        if degree not in self._known:
            weights = spline_values(self._fraction, self.order, degree)
            pairs = _plane(degree)
            first, second = (_index(tuple(pair[i] for pair in pairs), weights) for i in (0, 1))
            x, y, z = weights.unbind(1)
            plane = x.index_select(1, first)[..., None] * y.index_select(1, second)[:, :, None]
            self._known[degree] = plane.flatten(2), z.contiguous()
        return self._known[degree]


def gather(mesh: Tensor, coordinates: Tensor, stencil: Stencil, degree: int) -> Tensor:
    """Derivatives of the functions that splines make of mesh values, at the atoms.

    Args:
        mesh: [n_channels, n_points] values.
        coordinates: [n, 3] in mesh spacings, those of the stencil.
        stencil: where they lie.
        degree: highest derivative.

    Returns:
        [n_channels, n, n_derivatives], derivatives in the order of :func:`exponents`.
    """
    apply: Callable[..., Tensor] = _Gather.apply
    return apply(mesh, coordinates, stencil, degree)


def spread(
    values: Tensor, coordinates: Tensor, stencil: Stencil, degree: int, n_points: int
) -> Tensor:
    """The adjoint of :func:`gather`: [n_channels, n, n_derivatives] -> [n_channels, n_points]."""
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
            by_mesh = spread(grad, coordinates, ctx.stencil, ctx.degree, mesh.shape[1])
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
                along = tangent[:, axis, None]
                found = found + along * higher.index_select(2, _index(rows, higher))
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
        by_values = higher[..., : values.shape[2]] if ctx.needs_input_grad[0] else None
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
            higher = values.new_zeros(*values.shape[:2], len(exponents(ctx.degree + 1)))
            for axis, rows in enumerate(_raised(ctx.degree)):
                along = tangent[:, axis, None]
                higher = higher.index_add(2, _index(rows, higher), along * values)
            found = found + spread(higher, coordinates, ctx.stencil, ctx.degree + 1, ctx.n_points)
        return found


def _contract(values: Tensor, higher: Tensor, degree: int) -> Tensor:
    """sum_a values_a higher_(a + e) for each axis e: [n, 3]."""
    rows = (higher.index_select(2, _index(axis, higher)) for axis in _raised(degree))
    return torch.stack([(values * row).sum((0, 2)) for row in rows], dim=1)


@lru_cache(maxsize=16)
def _plane(degree: int) -> tuple[tuple[int, int], ...]:
    """Derivatives along the first two axes."""
    return tuple((a, b) for a, b, c in exponents(degree) if c == 0)


@lru_cache(maxsize=16)
def _places(degree: int) -> tuple[int, ...]:
    """Where the derivatives lie among those in the plane times those along z."""
    plane = _plane(degree)
    return tuple(plane.index((a, b)) * (degree + 1) + c for a, b, c in exponents(degree))


def _gather(mesh: Tensor, stencil: Stencil, degree: int) -> Tensor:
    p, chosen = stencil.order, _index(_places(degree), mesh)
    found = mesh.new_empty(len(mesh), len(stencil.index), len(chosen))
    for index, plane, along, atoms in stencil.chunks(degree):
        for channel, values in enumerate(mesh):
            block = torch.bmm(plane, values.index_select(0, index).view(-1, p * p, p))
            block = torch.bmm(block, along.transpose(1, 2)).flatten(1)
            torch.index_select(block, 1, chosen, out=found[channel, atoms])
    return found


def _spread(values: Tensor, stencil: Stencil, degree: int, n_points: int) -> Tensor:
    n_plane, chosen = len(_plane(degree)), _index(_places(degree), values)
    mesh = values.new_zeros(len(values), n_points)
    for index, plane, along, atoms in stencil.chunks(degree):
        for channel, total in enumerate(mesh):
            here = values[channel, atoms]
            block = here.new_zeros(len(here), n_plane * along.shape[1])
            block = block.index_copy_(1, chosen, here).view(len(here), n_plane, -1)
            block = torch.bmm(plane.transpose(1, 2), torch.bmm(block, along))
            total.scatter_add_(0, index, block.flatten())
    return mesh
