"""How the reference sums the electrostatics of a PolarMACE, for comparisons only.

The boundary condition is decided for a batch: where no structure is periodic, finite differences
in open space; else reciprocal sums for all, with the corrections of slabs and molecules in boxes.
The volume of a left-handed cell is negative there, and with it all sums over reciprocal space.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fpmace.boundaries import PbcMethod
from fpmace.electrostatics.padding import Padding
from fpmace.electrostatics.periodic import PeriodicPart
from fpmace.electrostatics.plan import BatchGeometry, Plan
from fpmace.models.polar import PolarMACE
from verification.reference_conventions import ReferenceElectrostatics


def use_polar_conventions(model: PolarMACE) -> PolarMACE:
    """Give the model the electrostatics of the reference numbers; returns it."""
    model.electrostatics = PolarReferenceElectrostatics(model.electrostatics.options)
    return model


class PolarReferenceElectrostatics(ReferenceElectrostatics):
    """Boundaries by batch, and volumes with the sign of the determinant."""

    def plan(
        self, positions: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor, ptr: Tensor
    ) -> Plan:
        method: PbcMethod = "mixed_periodic" if bool(pbc.any()) else "realspace"
        self.options = replace(self.options, pbc_handling=method)
        return super().plan(positions, cell, pbc, batch, ptr)

    def periodic(self, geometry: BatchGeometry, padding: Padding) -> PeriodicPart:
        part = super().periodic(geometry, padding)
        sign = torch.linalg.det(padding.of_graphs(geometry.cell)).sign().view(-1, 1, 1)
        k = replace(part.k, weight=part.k.weight * sign[..., 0])
        found = replace(part, k=k, receiver=part.receiver * sign)
        if found.correction is None:
            return found
        moments = replace(found.correction.moments, matrix=found.correction.moments.matrix * sign)
        receiver = found.correction.receiver * sign
        return replace(
            found, correction=replace(found.correction, moments=moments, receiver=receiver)
        )
