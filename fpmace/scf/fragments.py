"""Charges held fragment by fragment: each group of atoms has a level of its own.

At a potential w the level that gives a group its charge Q_f is a linear function of w,

    mu_f = (u_f.(rho0 - S w) - Q_f) / u_f.S.u_f,

so that rho0 - S (w + mu_f u_f) has the charges for every w. The energy of that density is
stationary in w as before, and solvers need not know of the constraint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fpmace.errors import ScfError
from fpmace.scf.problem import ChargeGroups
from fpmace.scf.quadratic import movable

_SMALLEST_CHARGE = 1e-6
"""Charge error (e) up to which a fragment that can move no charge passes."""


@dataclass(frozen=True, slots=True)
class HeldFragments:
    """Fragments and the charges that they keep.

    Attributes:
        groups: the atoms of each fragment.
        charge: [n_fragments] e.
    """

    groups: ChargeGroups
    charge: Tensor

    def check(self, response: Tensor, local_density: Tensor) -> None:
        """Refuse a fragment whose charge is wrong and that can move none.

        Raises:
            ScfError: naming structure and fragment.
        """
        missing = (self.charge - self.groups.sum(local_density[:, 0])).abs()
        missing = torch.where(torch.isinf(movable(response, self.groups)), missing, 0.0)
        worst = int(missing.argmax())
        if float(missing[worst]) > _SMALLEST_CHARGE:
            first = int((self.groups.index == worst).nonzero()[0])
            raise ScfError(
                f"structure {int(self.groups.graph[worst])}: the charge of the fragment of atom "
                f"{first} of the batch cannot be met (off by {float(missing[worst]):.3g} e): none "
                "of its atoms takes up charge; use isotropic: true in the update rule"
            )

    def shifted(self, potential: Tensor, response: Tensor, local_density: Tensor) -> Tensor:
        """w with the level of each fragment added, [n_atoms, n]."""
        moved = torch.einsum("ai,ai->a", response[:, 0], potential)
        gained = self.groups.sum(local_density[:, 0] - moved) - self.charge
        level = self.groups.spread(gained / movable(response, self.groups))
        return torch.cat([potential[:, :1] + level.unsqueeze(-1), potential[:, 1:]], dim=1)
