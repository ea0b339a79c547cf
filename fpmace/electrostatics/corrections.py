"""Slab and molecule-in-a-box corrections to the periodic sums.

Both are potentials spanned by u = (1, x, y, z, r^2) whose coefficients are linear in the moments
m = (Q, D_x, D_y, D_z, Theta) of the density, and the energy is m.M.m / 2 with the same symmetric
matrix M(cell). The moments are the density's integrals of u, so one projection serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from fpmace.errors import DataError
from fpmace.units import COULOMB_C, MADELUNG_CUBIC

N_MOMENTS = 5
SHAPE_TOLERANCE = 0.02
"""Largest relative deviation of a cell from the shape a correction assumes (room for strain)."""


@dataclass(frozen=True)
class Correction:
    """Geometry-dependent part of the corrections of a set of graphs.

    Attributes:
        matrix: [g, 5, 5] M of each graph, zero for a graph without correction.
        source: [g, n * n_density, 5] moments of a unit multipole.
        receiver: [g, n * n_features, 5] features of a unit moment (M included).
        source_for_features: as ``source``; differs where widths enter the quadratic term.
    """

    matrix: Tensor
    source: Tensor
    receiver: Tensor
    source_for_features: Tensor


def slab_matrix(volume: Tensor) -> Tensor:
    """M of the slab correction, normal along z: E = 2 pi C D_z^2 / V. [g] -> [g, 5, 5]."""
    unit = volume.new_zeros(N_MOMENTS, N_MOMENTS)
    unit[3, 3] = 4.0 * pi * COULOMB_C
    return unit / volume[:, None, None]


def molecule_matrix(volume: Tensor) -> Tensor:
    """M of the correction for a molecule in a cubic box (G. Makov, M. C. Payne, PRB 51, 4014).

    E = C alpha Q^2 / (2 V^(1/3)) + (2 pi C / 3V) (|D|^2 - Q Theta). [g] -> [g, 5, 5].
    """
    quadratic = volume.new_zeros(N_MOMENTS, N_MOMENTS)
    factor = 2.0 * pi * COULOMB_C / 3.0
    quadratic[1, 1] = quadratic[2, 2] = quadratic[3, 3] = 2.0 * factor
    quadratic[0, 4] = quadratic[4, 0] = -factor
    charge = volume.new_zeros(N_MOMENTS, N_MOMENTS)
    charge[0, 0] = COULOMB_C * MADELUNG_CUBIC
    v = volume[:, None, None]
    return charge * v ** (-1.0 / 3.0) + quadratic / v


def project(points: Tensor, max_l: int, variance: float = 0.0) -> Tensor:
    """C_lm(grad)/(2l-1)!! on u smoothed by a Gaussian of the given variance, at points.

    The l = 2 components vanish: r^2 is the only quadratic member of u, and it is isotropic.

    Args:
        points: [g, n, 3].

    Returns:
        [g, n, (max_l + 1)^2, 5].
    """
    one = torch.ones_like(points[..., :1])
    square = points.square().sum(-1, keepdim=True) + 3.0 * variance
    rows = [torch.cat([one, points, square], dim=-1)]
    if max_l >= 1:
        unit = torch.eye(3, dtype=points.dtype, device=points.device).expand(*points.shape, 3)
        columns = [torch.zeros_like(points)[..., None], unit, 2.0 * points[..., None]]
        gradient = torch.cat(columns, dim=-1)
        rows += [gradient[..., axis, :] for axis in (1, 2, 0)]
    rows += [torch.zeros_like(rows[0])] * ((max_l + 1) ** 2 - len(rows))
    return torch.stack(rows, dim=-2)


def check_slab(cell: Tensor, chosen: list[bool], what: str) -> None:
    """Refuse a slab cell whose third vector is not along z or whose others are not in the plane.

    Raises:
        DataError: naming the graph.
    """
    for graph, rows in enumerate(cell.detach().tolist()):
        length = max(abs(x) for row in rows for x in row) * SHAPE_TOLERANCE
        tilt = max(abs(rows[0][2]), abs(rows[1][2]), abs(rows[2][0]), abs(rows[2][1]))
        if chosen[graph] and tilt > length:
            raise DataError(
                f"graph {graph}: {what} needs a cell with the third vector along z and the others "
                f"in the xy plane, got {_format(rows)}; rotate the cell or use pbc_method 'pbc'"
            )


def check_cubic(cell: Tensor, chosen: list[bool], what: str) -> None:
    """Refuse a box that is clearly not cubic.

    Raises:
        DataError: naming the graph.
    """
    gram = torch.bmm(cell.detach(), cell.detach().transpose(1, 2)).tolist()
    for graph, rows in enumerate(cell.detach().tolist()):
        square = sum(gram[graph][i][i] for i in range(3)) / 3.0
        off = max(
            abs(gram[graph][i][j] - square * (i == j)) for i in range(3) for j in range(i + 1)
        )
        if chosen[graph] and off > 2.0 * SHAPE_TOLERANCE * square:
            raise DataError(
                f"graph {graph}: {what} needs a cubic box, got the cell {_format(rows)}; "
                "use a cubic cell or pbc_method 'realspace'"
            )


def check_cell(cell: Tensor, chosen: list[bool], what: str) -> None:
    """Refuse a zero or singular cell.

    Raises:
        DataError: naming the graph.
    """
    for graph, rows in enumerate(cell.detach().tolist()):
        if not chosen[graph]:
            continue
        lengths = [sum(x * x for x in row) ** 0.5 for row in rows]
        scale = lengths[0] * lengths[1] * lengths[2]
        if not abs(_determinant(rows)) > 1e-5 * scale > 0.0:
            raise DataError(
                f"graph {graph}: {what} needs a cell with a volume, got {_format(rows)}; "
                "give the structure a cell or use pbc_method 'realspace'"
            )


def _determinant(rows: list[list[float]]) -> float:
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _format(rows: list[list[float]]) -> str:
    return str([[round(x, 4) for x in row] for row in rows])
