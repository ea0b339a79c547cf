"""The electrostatics with the numerical shortcuts of earlier codes, for comparisons only.

Reference numbers of fixed-point models with open boundaries contain a finite-difference scheme
(multipoles as point charges h = 0.02 or 0.1 Angstrom apart, distances softened by 1e-6), and
those of molecules in a box contain the box length as V^0.3333 in the energy and V^0.333333 in
the potential. fpmace uses closed forms and V^(1/3). To compare the rest of a model with such
numbers to 1e-7, :func:`use_reference_conventions` swaps these two pieces in.
"""

from __future__ import annotations

from dataclasses import replace
from math import pi, sqrt

import torch
from torch import Tensor

from fpmace.electrostatics.gto import GTOElectrostatics
from fpmace.electrostatics.padding import Padding
from fpmace.electrostatics.periodic import PeriodicPart
from fpmace.electrostatics.plan import BatchGeometry
from fpmace.electrostatics.realspace import OpenPart
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.units import COULOMB_C, MADELUNG_CUBIC

ENERGY_STEP, FEATURE_STEP, SOFTENING = 0.02, 0.1, 1e-6


def use_reference_conventions(model: FixedPointCore) -> FixedPointCore:
    """Give the model the electrostatics of the reference numbers; returns it."""
    model.electrostatics = ReferenceElectrostatics(model.electrostatics.options)
    return model


class ReferenceElectrostatics(GTOElectrostatics):
    """:class:`GTOElectrostatics` with the reference's open boundaries and box length (l <= 1)."""

    def open(self, geometry: BatchGeometry, padding: Padding) -> OpenPart:
        part = super().open(geometry, padding)
        return self._finite_differences(part, part.positions)

    def periodic(self, geometry: BatchGeometry, padding: Padding) -> PeriodicPart:
        part = super().periodic(geometry, padding)
        return self._box_length(part, padding.of_graphs(geometry.pbc))

    def _box_length(self, part: PeriodicPart, pbc: Tensor) -> PeriodicPart:
        method = self.options.pbc_handling
        if part.correction is None or method not in ("molecule_in_box", "mixed_periodic"):
            return part
        volume = part.k.volume
        is_molecule = torch.ones_like(volume)
        if method == "mixed_periodic":
            is_molecule = (~pbc.any(-1)).to(volume)

        def change(exponent: float) -> Tensor:
            difference = volume ** (-exponent) - volume ** (-1.0 / 3.0)
            return COULOMB_C * MADELUNG_CUBIC * difference * is_molecule

        correction, moments = part.correction, part.correction.moments
        corner = torch.zeros_like(moments.matrix)
        corner[:, 0, 0] = 1.0
        matrix = moments.matrix + corner * change(0.3333)[:, None, None]
        scale = torch.tensor(
            [column.scale if column.component == 0 else 0.0 for column in self.columns],
            dtype=volume.dtype,
        )
        n_rows = correction.receiver.shape[1] // len(self.columns)
        rows = scale.repeat(n_rows)[None, :, None] * change(0.333333)[:, None, None]
        receiver = correction.receiver + rows * correction.receiver.new_tensor([1.0, 0, 0, 0, 0])
        moments = replace(moments, matrix=matrix)
        return replace(part, correction=replace(correction, moments=moments, receiver=receiver))

    def _finite_differences(self, part: OpenPart, positions: Tensor) -> OpenPart:
        sigma, n_density = self.options.smearing_width, self.n_density
        energy = _pair_matrix(positions, sigma, ENERGY_STEP, n_density)
        energy = _with_diagonal(energy, part.energy_matrix, n_density, n_density)
        blocks = []
        for column in self.columns:
            width = self.options.feature_widths[column.width_index]
            mixed = sqrt(0.5 * (sigma**2 + width**2))
            # The scheme for features is that of dipoles, also for a density of charges.
            full = _pair_matrix(positions, mixed, FEATURE_STEP, 4)
            rows = full[:, :, column.component, :, :n_density]
            factor = sqrt(4.0 * pi) if column.component == 0 else pi * sqrt(1.5) * width
            blocks.append(rows * factor)
        features = torch.stack(blocks, dim=2)
        features = _with_diagonal(features, part.feature_matrix, self.n_features, n_density)
        return replace(part, energy_matrix=energy, feature_matrix=features)


def _pair_matrix(positions: Tensor, width: float, step: float, n_density: int) -> Tensor:
    """[g, n, rows, n, n_density]: potential differences at sub-points due to sub-charges."""
    directions = (1, 2, 0)
    n_points = 4 if n_density > 1 else 1
    shifts = positions.new_zeros(n_points, 3)
    charges = positions.new_zeros(n_points, n_density)
    charges[0, 0] = 1.0
    for column, axis in enumerate(directions[: n_points - 1], start=1):
        shifts[column, axis] = step
        charges[0, column] = -1.0 / step
        charges[column, column] = 1.0 / step
    points = positions[:, :, None, :] + shifts
    g, n = positions.shape[:2]
    flat = points.reshape(g, n * n_points, 3)
    atom = torch.arange(n).repeat_interleave(n_points)
    other = (atom[:, None] != atom[None, :]).to(positions.dtype)
    delta = flat[:, :, None, :] - flat[:, None, :, :]
    distance = (delta.square().sum(-1) + (1.0 - other)).sqrt()
    potential = COULOMB_C * torch.erf(distance / (2.0 * width)) / (distance + SOFTENING) * other
    potential = potential.reshape(g, n, n_points, n, n_points)
    return torch.einsum("pa,gipjq,qb->giajb", charges, potential, charges)


def _with_diagonal(blocks: Tensor, exact: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """Operator of ``blocks`` [g, n, rows, n, columns] with the exact on-site blocks added."""
    g, n = blocks.shape[:2]
    onsite = exact.reshape(g, n, n_rows, n, n_columns)
    same = torch.eye(n, dtype=blocks.dtype)[None, :, None, :, None]
    return (blocks + onsite * same).reshape(g, n * n_rows, n * n_columns)
