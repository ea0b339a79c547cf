"""Slab and molecule-in-a-box corrections to the periodic sums.

Both are potentials spanned by u = (1, x, y, z, r^2) whose coefficients are linear in the moments
m = (Q, D_x, D_y, D_z, Theta) of the density, and the energy is m.M.m / 2 with the same symmetric
matrix M(cell). The moments are the density's integrals of u, so one projection serves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from fpmace.boundaries import MOLECULE, PERIODIC, SLAB, TTF
from fpmace.electrostatics.layout import Layout
from fpmace.electrostatics.tables import upload
from fpmace.units import COULOMB_C, MADELUNG_CUBIC

N_MOMENTS = 5


@dataclass(frozen=True)
class Moments:
    """A potential that is linear in the moments of the density.

    Attributes:
        matrix: [g, 5, 5] M of each graph, zero for a graph without correction.
        source: [g, n_max * n_density, 5] moments of a unit multipole.
    """

    matrix: Tensor
    source: Tensor

    def response(self, density: Tensor) -> Tensor:
        """Coefficients of u: density [g, n_max, n_density] -> [g, 1, 5]."""
        return torch.bmm(self.of_density(density), self.matrix)

    def of_density(self, density: Tensor) -> Tensor:
        """The moments, [g, 1, 5]."""
        return torch.bmm(density.flatten(1)[:, None], self.source)

    def energy(self, density: Tensor) -> Tensor:
        """[g] eV."""
        moments = self.of_density(density)
        return 0.5 * (moments * torch.bmm(moments, self.matrix)).sum((1, 2))

    def potential(self, density: Tensor) -> Tensor:
        """Derivative of the energy by the density, [g, n_max * n_density, 1]."""
        return torch.bmm(self.source, self.response(density).transpose(1, 2))

    def potential_matrix(self) -> Tensor:
        """Second derivative of the energy, [g, n_max * n_density, n_max * n_density]."""
        return torch.bmm(torch.bmm(self.source, self.matrix), self.source.transpose(1, 2))

    def potential_at(self, density: Tensor, points: Tensor) -> Tensor:
        """The potential at points [g, n, 3]: [g, n] V."""
        basis = project(points, 0).squeeze(2)
        return torch.bmm(basis, self.response(density).transpose(1, 2)).squeeze(-1)

    def of_graph(self, row: int) -> Moments:
        """That of one graph."""
        return Moments(self.matrix[row : row + 1], self.source[row : row + 1])


@dataclass(frozen=True)
class Correction:
    """Geometry-dependent part of the corrections of a set of graphs.

    Attributes:
        moments: of the energy.
        receiver: [g, n_max * n_features, 5] features of a unit moment (M included).
        source: [g, n_max * n_density, 5] moments that the features see; other than those of the
            energy where widths enter the quadratic term.
    """

    moments: Moments
    receiver: Tensor
    source: Tensor

    def features(self, density: Tensor) -> Tensor:
        """[g, n_max, n_density] -> [g, n_max * n_features, 1]."""
        return _through(density, self.source, self.receiver)

    def features_transpose(self, features: Tensor) -> Tensor:
        """[g, n_max, n_features] -> [g, n_max * n_density, 1]."""
        return _through(features, self.receiver, self.source)

    def features_matrix(self) -> Tensor:
        """[g, n_max * n_features, n_max * n_density]."""
        return torch.bmm(self.receiver, self.source.transpose(1, 2))


def _through(values: Tensor, gather: Tensor, spread: Tensor) -> Tensor:
    moments = torch.bmm(values.flatten(1)[:, None], gather)
    return torch.bmm(spread, moments.transpose(1, 2))


def make_correction(
    layout: Layout, positions: Tensor, volume: Tensor, boundaries: Sequence[str]
) -> Correction | None:
    """Corrections of the graphs that are slabs or molecules; None if no graph is.

    Args:
        positions: [g, n_max, 3].
        volume: [g].
        boundaries: of each graph.
    """
    matrix = correction_matrix(volume, boundaries)
    if matrix is None:
        return None
    options = layout.options
    exact = options.quadrupole_feature_corrections
    source = project(positions, options.density_max_l).flatten(1, 2)
    smeared = source
    if exact:
        variance = options.smearing_width**2
        smeared = project(positions, options.density_max_l, variance).flatten(1, 2)
    by_width = [
        project(positions, options.feature_max_l, width**2 if exact else 0.0)
        for width in options.feature_widths
    ]
    rows = [by_width[c.width_index][:, :, c.component] * c.scale for c in layout.columns]
    receiver = torch.stack(rows, dim=2).flatten(1, 2)
    return Correction(Moments(matrix, source), torch.bmm(receiver, matrix), smeared)


def make_flat(
    layout: Layout, positions: Tensor, volume: Tensor, flags: Sequence[tuple[bool, ...]]
) -> Moments | None:
    """The slab term of graphs [g, n_max, 3] with flags TTF, None if there is none."""
    kinds = [SLAB if flag == TTF else PERIODIC for flag in flags]
    matrix = correction_matrix(volume, kinds)
    if matrix is None:
        return None
    return Moments(matrix, project(positions, layout.options.density_max_l).flatten(1, 2))


def correction_matrix(volume: Tensor, boundaries: Sequence[str]) -> Tensor | None:
    """M of each graph, [g, 5, 5]; None if no graph has a correction."""
    if not {SLAB, MOLECULE} & set(boundaries):
        return None
    shares = [[float(name == kind) for name in boundaries] for kind in (SLAB, MOLECULE)]
    flags = upload(torch.tensor(shares, dtype=volume.dtype), volume.device)[..., None, None]
    return flags[0] * slab_matrix(volume) + flags[1] * molecule_matrix(volume)


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
