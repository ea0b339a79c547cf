"""Graphs summed in reciprocal space: a few matrix products for each map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fpmace.electrostatics import gaussian, kspace
from fpmace.electrostatics.corrections import Correction, Moments
from fpmace.electrostatics.kspace import KVectors, Phases, sum_over_vectors
from fpmace.electrostatics.layout import Layout
from fpmace.electrostatics.padding import Padding
from fpmace.electrostatics.parts import CorrectedPart
from fpmace.units import COULOMB_K


@dataclass(frozen=True)
class PeriodicPart(CorrectedPart):
    """Graphs summed in reciprocal space, with the corrections of slabs and molecules in boxes.

    Attributes:
        k: the reciprocal lattice vectors.
        phases: cos and sin of k.R.
        source: complex [g, n_density, n_k], conjugate source form factors.
        receiver: complex [g, n_features, n_k], receiver form factors with the Coulomb weight.
    """

    k: KVectors
    phases: Phases
    source: Tensor
    receiver: Tensor

    def _structure_factor(self, density: Tensor) -> Tensor:
        """Conjugate structure factor, complex [g, n_k]."""
        return (self.phases.sum_over_atoms(density) * self.source).sum(1)

    def summed_features(self, density: Tensor) -> Tensor:
        structure = self._structure_factor(density)
        return self.phases.sum_over_vectors(structure[:, None] * self.receiver)

    def summed_features_transpose(self, features: Tensor) -> Tensor:
        received = self.phases.sum_over_atoms(features)
        collected = (received * self.receiver.conj()).sum(1)
        return self.phases.sum_over_vectors(collected[:, None] * self.source.conj())

    def summed_conjugate(self, density: Tensor) -> Tensor:
        structure = self._structure_factor(density) * self.k.weight
        return self.phases.sum_over_vectors(structure[:, None] * self.source.conj())

    def summed_energy(self, density: Tensor) -> Tensor:
        square = torch.view_as_real(self._structure_factor(density)).square().sum(-1)
        return 0.5 * (self.k.weight * square).sum(1)

    def summed_at_atoms(self, density: Tensor) -> Tensor:
        amplitudes = self._structure_factor(density) * self.k.weight
        return self.phases.sum_over_vectors(amplitudes[:, None]).squeeze(-1)

    def summed_potential_at(self, row: int, density: Tensor, points: Tensor) -> Tensor:
        return self._at_points(row, density, points, self.k.weight[row])

    def density_at(self, row: int, density: Tensor, points: Tensor) -> Tensor:
        """With the same vectors as the potential, plus the mean Q/V.

        So the two obey Poisson's equation up to that background.
        """
        weight = self.k.weight[row] * self.k.square[row] / COULOMB_K
        mean = density[0, :, 0].sum() / self.k.volume[row]
        return self._at_points(row, density, points, weight) + mean

    def _at_points(self, row: int, density: Tensor, points: Tensor, weight: Tensor) -> Tensor:
        chosen = slice(row, row + 1)
        summed = self.phases.of_graph(row).sum_over_atoms(density) * self.source[chosen]
        amplitudes = (summed.sum(1) * weight)[:, None]
        phases = kspace.phases(self.k.vectors[chosen], points[None])
        return sum_over_vectors(amplitudes, phases)[0, :, 0]

    def features_matrix(self) -> Tensor:
        left, right = self._waves(self.receiver.conj()), self._waves(self.source)
        matrix = torch.bmm(left, right.transpose(1, 2))
        own = self.layout.removed_features(matrix)
        if own is not None:
            matrix = matrix - self._on_diagonal(own.T)
        if self.correction is not None:
            matrix = matrix + self.correction.features_matrix()
        return matrix

    def conjugate_matrix(self) -> Tensor:
        waves = self._waves(self.source)
        weight = self.k.weight.repeat_interleave(2, dim=1)[:, None]
        matrix = torch.bmm(waves * weight, waves.transpose(1, 2))
        own = self.layout.removed_energy(matrix)
        if own is not None:
            matrix = matrix - self._on_diagonal(torch.diag(own))
        if self.correction is not None:
            matrix = matrix + self.correction.moments.potential_matrix()
        return matrix

    def _waves(self, factors: Tensor) -> Tensor:
        """factors_n(k) exp(i k.R_i), real and imaginary parts as columns: [g, n_max n, 2 n_k]."""
        unit = kspace.as_complex(self.phases.all())[:, :, None]
        return torch.view_as_real(unit * factors[:, None]).flatten(-2).flatten(1, 2)

    def _on_diagonal(self, block: Tensor) -> Tensor:
        eye = torch.eye(self.padding.n_max, dtype=block.dtype, device=block.device)
        return (eye[:, None, :, None] * block[:, None]).flatten(2).flatten(0, 1)


def periodic_part(
    layout: Layout,
    padding: Padding,
    positions: Tensor,
    k: KVectors,
    correction: Correction | None,
    flat: Moments | None,
) -> PeriodicPart:
    """Phases and form factors of graphs whose atoms lie at ``positions`` [g, n_max, 3]."""
    options = layout.options
    source = kspace.form_factors(
        k,
        options.density_max_l,
        [options.smearing_width] * layout.n_density,
        tuple(range(layout.n_density)),
        kspace.source_scales(options.density_max_l),
    )
    receiver = kspace.form_factors(
        k,
        options.feature_max_l,
        [options.feature_widths[column.width_index] for column in layout.columns],
        tuple(column.component for column in layout.columns),
        tuple(column.scale for column in layout.columns),
    )
    degrees = gaussian.degree_of_components(options.density_max_l)
    return PeriodicPart(
        layout,
        padding,
        positions,
        k=k,
        phases=kspace.make_phases(k.vectors, positions),
        source=kspace.rotate(source, degrees, 1),
        receiver=kspace.rotate(
            receiver * k.weight[..., None], [column.ell for column in layout.columns], -1
        ),
        correction=correction,
        flat=flat,
    )
