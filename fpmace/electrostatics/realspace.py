"""Open boundaries: closed-form interactions of Gaussian multipoles, all pairs of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Tensor

from fpmace.electrostatics import gaussian
from fpmace.electrostatics.boys import boys
from fpmace.electrostatics.harmonics import monomials, pair_table, solid_harmonics
from fpmace.electrostatics.kspace import source_scales
from fpmace.electrostatics.layout import Layout
from fpmace.electrostatics.padding import Padding
from fpmace.electrostatics.parts import SummedPart
from fpmace.electrostatics.tables import columns, numbers
from fpmace.units import COULOMB_C


def pair_kernel(vectors: Tensor, variances: list[float], max_l: int, source_max_l: int) -> Tensor:
    """C_a(grad) C_b(-grad)/(2 l_b - 1)!! on C erf(r / sqrt(2 s)) / r for each variance s.

    This is the potential (smoothed, differentiated) at the receiver of a unit multipole b at the
    sender. It is smooth at r = 0, where it is the interaction of concentric functions.

    Args:
        vectors: [..., 3] receiver minus sender, Angstrom.
        variances: sums of the two squared widths, Angstrom^2.
        max_l, source_max_l: highest l of receivers a and sources b.

    Returns:
        [..., n_variances, n_a, n_b] in V per e Angstrom^l_b and Angstrom^l_a.
    """
    table = pair_table(max_l, source_max_l)
    inverse = numbers(tuple(1.0 / s for s in variances), vectors)
    t = 0.5 * vectors.square().sum(-1, keepdim=True) * inverse
    radial = boys(t, table.max_order)
    prefactors = [
        numbers(tuple(COULOMB_C * sqrt(2.0 / (pi * s)) * s**-order for s in variances), vectors)
        for order in range(table.max_order + 1)
    ]
    scaled = torch.stack([f * p for f, p in zip(radial, prefactors, strict=True)], dim=-1)
    terms = columns(monomials(vectors, table.exponents), table.monomial).unsqueeze(-2)
    kernel = (terms * columns(scaled, table.order)) @ table.matrix(vectors)
    return kernel.view(*kernel.shape[:-1], (max_l + 1) ** 2, (source_max_l + 1) ** 2)


def pair_vectors(positions: Tensor) -> Tensor:
    """R_i - R_j for all pairs: [g, n, 3] -> [g, n, n, 3]."""
    return positions[:, :, None] - positions[:, None, :]


def as_operator(kernel: Tensor) -> Tensor:
    """[g, n, n', n_a, n_b] -> [g, n n_a, n' n_b], rows atom-major."""
    return kernel.transpose(2, 3).flatten(3, 4).flatten(1, 2)


@dataclass(frozen=True)
class OpenPart(SummedPart):
    """Graphs with open boundaries, summed over all pairs.

    Attributes:
        feature_matrix: [g, n_max * n_features, n_max * n_density].
        energy_matrix: [g, n_max * n_density, n_max * n_density], the energy's second derivative.
    """

    feature_matrix: Tensor
    energy_matrix: Tensor

    def features(self, density: Tensor) -> Tensor:
        return _times(self.feature_matrix, density)

    def features_transpose(self, features: Tensor) -> Tensor:
        flat = features.flatten(1)[:, None]
        return torch.bmm(flat, self.feature_matrix).view(*features.shape[:2], -1)

    def conjugate(self, density: Tensor) -> Tensor:
        return _times(self.energy_matrix, density)

    def energy(self, density: Tensor) -> Tensor:
        flat = density.flatten(1)[..., None]
        return 0.5 * (flat * torch.bmm(self.energy_matrix, flat)).sum((1, 2))

    def at_atoms(self, density: Tensor) -> Tensor:
        options = self.layout.options
        variances = [options.smearing_width**2]
        kernel = pair_kernel(pair_vectors(self.positions), variances, 0, options.density_max_l)
        return _times(as_operator(kernel.squeeze(-3)), density).squeeze(-1)

    def potential_at(self, row: int, density: Tensor, points: Tensor) -> Tensor:
        return potential_at(self.layout, self.positions[row], density[0], points)

    def density_at(self, row: int, density: Tensor, points: Tensor) -> Tensor:
        return density_at(self.layout, self.positions[row], density[0], points)

    def features_matrix(self) -> Tensor:
        return self.feature_matrix

    def conjugate_matrix(self) -> Tensor:
        return self.energy_matrix


def potential_at(layout: Layout, positions: Tensor, density: Tensor, points: Tensor) -> Tensor:
    """Potential of atoms [n, 3] with a density [n, n_density] at points [m, 3]: [m] V."""
    vectors = points[:, None] - positions
    variances = [layout.options.smearing_width**2]
    kernel = pair_kernel(vectors, variances, 0, layout.options.density_max_l)
    return torch.einsum("pnb,nb->p", kernel.flatten(-3), density)


def density_at(layout: Layout, positions: Tensor, density: Tensor, points: Tensor) -> Tensor:
    """Charge density of atoms at points, as :func:`potential_at`: [m] e/Angstrom^3."""
    sigma, max_l = layout.options.smearing_width, layout.options.density_max_l
    norms = tuple(
        gaussian.multipole_norm(ell, sigma) * sqrt((2 * ell + 1) / (4.0 * pi))
        for ell in gaussian.degree_of_components(max_l)
    )
    vectors = points[:, None] - positions
    decay = torch.exp(-0.5 * vectors.square().sum(-1, keepdim=True) / sigma**2)
    shapes = solid_harmonics(vectors, max_l) * decay * numbers(norms, points)
    return torch.einsum("pnb,nb->p", shapes, density)


def _times(matrix: Tensor, density: Tensor) -> Tensor:
    return torch.bmm(matrix, density.flatten(1)[..., None]).view(*density.shape[:2], -1)


def open_part(layout: Layout, padding: Padding, positions: Tensor) -> OpenPart:
    """Both matrices of graphs whose atoms lie at ``positions`` [g, n_max, 3]."""
    options, sigma = layout.options, layout.options.smearing_width
    vectors = pair_vectors(positions)
    by_width = pair_kernel(
        vectors,
        [sigma**2 + width**2 for width in options.feature_widths],
        options.feature_max_l,
        options.density_max_l,
    )
    rows = [by_width[..., c.width_index, c.component, :] * c.scale for c in layout.columns]
    features = torch.stack(rows, dim=-2)
    energy = pair_kernel(
        vectors, [2.0 * sigma**2], options.density_max_l, options.density_max_l
    ).squeeze(-3)
    energy = energy * numbers(source_scales(options.density_max_l), energy)[:, None]
    others = 1.0 - torch.eye(positions.shape[1], dtype=vectors.dtype, device=vectors.device)
    mask = others[..., None, None]
    if not options.include_field_self_interaction:
        features = features * mask
    if not options.include_energy_self_interaction:
        energy = energy * mask
    return OpenPart(layout, padding, positions, as_operator(features), as_operator(energy))
