"""Which mesh each structure gets: sizes along axes, origins, and groups of equal ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, pi

import torch
from torch import Tensor

from fpmace.boundaries import OPEN, SLAB
from fpmace.electrostatics.mesh.accuracy import fast_size
from fpmace.electrostatics.mesh.fourier import Shape, Sizes

Span = tuple[float, float]
"""Lowest and highest coordinate of atoms along an axis."""


@dataclass(frozen=True)
class GridRule:
    """How meshes are laid out.

    Attributes:
        spacing: at most this between points, Angstrom.
        order: of the splines.
        cutoff: largest |k| of the sums over waves, 1/Angstrom.
        margin: Angstrom beyond which the kernel of a slab is that of point charges.
    """

    spacing: float
    order: int
    cutoff: float
    margin: float


@dataclass(frozen=True)
class Grid:
    """The mesh of one structure.

    Attributes:
        kind: ``open``, ``slab`` (without images along the normal) or ``periodic``.
        sizes: points that hold atoms, points of the FFT, and waves that are kept.
        origin: whole number of spacings from the origin of coordinates to the first point.
    """

    kind: str
    sizes: Sizes
    origin: Shape


def make_grid(rule: GridRule, kind: str, lengths: Sequence[float], spans: Sequence[Span]) -> Grid:
    """The mesh of a structure.

    Args:
        rule: how it is laid out.
        kind: see :class:`Grid`.
        lengths: of the cell vectors, Angstrom.
        spans: of the atoms along x, y, z (open) or along the normal (the last one; slab).
    """
    sides = []
    for axis in range(3):
        if kind == OPEN:
            sides.append(_open_side(rule, spans[axis], 0.0, inf))
        elif kind == SLAB and axis == 2:
            sides.append(_open_side(rule, spans[axis], rule.margin, rule.cutoff))
        else:
            sides.append(_periodic_side(rule, lengths[axis]))
    points, padded, kept, origin = zip(*sides, strict=True)
    return Grid(kind, Sizes(points, padded, kept), origin)


Side = tuple[int, int, int, int]
"""Points, padded points, highest wave and origin along an axis."""


def _open_side(rule: GridRule, span: Span, margin: float, cutoff: float) -> Side:
    """Anchored in space, so that it moves in whole spacings; a margin beyond each end."""
    extra = 2.0 * margin / rule.spacing
    first = floor(span[0] / rule.spacing) - rule.order // 2 + 1
    last = floor(span[1] / rule.spacing) + rule.order // 2
    padded = fast_size(2 * (last - first + 1) + extra)
    highest = min(padded // 2, padded * rule.spacing * cutoff / (2.0 * pi))
    return (padded - ceil(extra)) // 2, padded, floor(highest), first


def _periodic_side(rule: GridRule, length: float) -> Side:
    """Fine enough, and with all waves of the direct sum below the Nyquist wave."""
    highest = max(0, ceil(length * rule.cutoff / (2.0 * pi)) - 1)
    size = fast_size(max(length / rule.spacing, 2 * highest + 2))
    return size, size, highest, 0


@torch.no_grad()
def spans_of(coordinates: Tensor, batch: Tensor, n_graphs: int) -> list[list[Span]]:
    """Lowest and highest of [n, 3] coordinates in each graph, on the host."""
    index = batch[:, None].expand(-1, 3)
    ends = [
        coordinates.new_zeros(n_graphs, 3).scatter_reduce(
            0, index, coordinates.detach(), kind, include_self=False
        )
        for kind in ("amin", "amax")
    ]
    both = torch.stack(ends, dim=-1).tolist()
    return [[(low, high) for low, high in graph] for graph in both]
