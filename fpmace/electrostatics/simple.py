"""A plan from one function: the potential of a density, smoothed and differentiated at atoms."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fpmace.electrostatics.kspace import source_scales
from fpmace.electrostatics.plan import Plan
from fpmace.electrostatics.tables import numbers


@dataclass(frozen=True)
class SimplePlan(Plan):
    """Features, conjugate potential and energy follow from :meth:`smoothed_potential`.

    Override what the summation can do more cheaply (all widths at once, the transpose).
    """

    @abstractmethod
    def smoothed_potential(self, density: Tensor, width: float, max_l: int) -> Tensor:
        """C_lm(grad) V_w at the atoms; each atom's own part is included.

        V_w is the potential of the density (every multipole a Gaussian of ``smearing_width``)
        convolved with a normalised Gaussian of width w; C_lm are the solid harmonics of
        :mod:`fpmace.electrostatics.harmonics`.

        Args:
            density: [n_atoms, n_density] e Angstrom^l.
            width: w in Angstrom, 0 for the potential itself.
            max_l: highest degree.

        Returns:
            [n_atoms, (max_l + 1)^2] V/Angstrom^l.
        """

    def potential_features(self, density: Tensor) -> Tensor:
        options = self.layout.options
        by_width = [
            self.smoothed_potential(density, width, options.feature_max_l)
            for width in options.feature_widths
        ]
        values = self.layout.arrange(torch.stack(by_width, dim=1))
        own = self.layout.removed_features(density)
        return values if own is None else values - density @ own

    def conjugate_potential(self, density: Tensor) -> Tensor:
        options = self.layout.options
        smoothed = self.smoothed_potential(density, options.smearing_width, options.density_max_l)
        values = smoothed * numbers(source_scales(options.density_max_l), density)
        own = self.layout.removed_energy(density)
        return values if own is None else values - density * own

    def potential_at_atoms(self, density: Tensor) -> Tensor:
        return self.smoothed_potential(density, 0.0, 0)[:, 0]
