"""An electrostatics of one's own: charges and dipoles in the open, by a plain loop over pairs.

The potential of a Gaussian charge smoothed by another Gaussian is f(r) = C erf(r / sqrt(2 s)) / r,
s = sigma^2 + w^2. With B_0 = f, B_1 = -f'/r and B_2 = -B_1'/r, all smooth at r = 0:

    V = q B_0 + (d.r) B_1,   grad V = -q r B_1 + d B_1 - r (d.r) B_2

In YAML: ``plugins: [my_electrostatics.py]``, ``electrostatics: pair_loop`` and
``electrostatic_pbc_method: realspace``. Run as a script it checks itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fpmace.boundaries import OPEN
from fpmace.electrostatics import BatchGeometry, Capabilities, Electrostatics, SimplePlan
from fpmace.electrostatics.boys import boys
from fpmace.registry import register_electrostatics
from fpmace.units import COULOMB_C


@dataclass(frozen=True)
class PairLoopPlan(SimplePlan):
    """Needs nothing but the positions; every density loops over all pairs again."""

    def smoothed_potential(self, density: Tensor, width: float, max_l: int) -> Tensor:
        """Value and gradient (y, z, x) of the smoothed potential at the atoms."""
        variance = self.layout.options.smearing_width**2 + width**2
        rows = []
        for graph in range(self.geometry.n_graphs):
            atoms = self.geometry.atoms_of(graph)
            positions, sources = self.geometry.positions[atoms], density[atoms]
            for here in positions:
                total = density.new_zeros(4)
                for there, source in zip(positions, sources, strict=True):
                    total = total + pair(here - there, source, variance)
                rows.append(total[: (max_l + 1) ** 2])
        return torch.stack(rows)


def pair(r: Tensor, source: Tensor, variance: float) -> Tensor:
    """Potential and its gradient (y, z, x) at r from one atom's multipoles, [4]."""
    scale = COULOMB_C * (2.0 / (torch.pi * variance)) ** 0.5
    radial = boys(0.5 * r.square().sum() / variance, 2)
    b0, b1, b2 = (scale * radial[n] / variance**n for n in range(3))
    value, gradient = source[0] * b0, -source[0] * b1 * r
    if len(source) == 4:
        dipole = source[[3, 1, 2]]
        along = (dipole * r).sum()
        value = value + along * b1
        gradient = gradient + dipole * b1 - r * along * b2
    return torch.cat([value[None], gradient[[1, 2, 0]]])


@register_electrostatics("pair_loop")
class PairLoop(Electrostatics):
    """Charges and dipoles of open structures, pair by pair."""

    capabilities = Capabilities(boundaries=(OPEN,), max_l=1)

    def make_plan(self, geometry: BatchGeometry) -> PairLoopPlan:
        return PairLoopPlan(self, geometry)


if __name__ == "__main__":
    from fpmace.testing.electrostatics_contract import check_electrostatics

    check_electrostatics("pair_loop")
    print("pair_loop keeps the contract of an electrostatics")
