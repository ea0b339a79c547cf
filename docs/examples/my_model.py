"""A model of one's own: Gaussian charges that depend on the element alone, on a short-ranged MACE.

    E = E_MACE + E_es(q) + F . sum_i q_i r_i,    q_i = c(Z_i) + (Q - sum_j c(Z_j)) / N

The c(Z) are trained; what is missing to the total charge Q is spread evenly. Used as

    fpmace-train --plugins my_model.py --model "{type: MyModel, smearing: 0.7}" ...
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from fpmace.annotations import Bounds, Doc, Unit
from fpmace.data.batch import Batch
from fpmace.electrostatics.base import build_electrostatics
from fpmace.electrostatics.options import BoundaryMethod, ElectrostaticsOptions, Summation
from fpmace.models.base import DensityInfo, Request
from fpmace.models.geometry import Geometry
from fpmace.models.mace import MACE
from fpmace.observables.types import Observables
from fpmace.registry import register_model


@register_model("MyModel")
class MyModel(MACE):
    """MACE and the electrostatics of one charge per element.

    Beside its own options it takes those of MACE.
    """

    has_density = True
    inputs = frozenset({"total_charge", "external_field"})
    outputs = MACE.outputs | {
        "density",
        "dipole",
        "total_charge",
        "electrostatic_energy",
        "field_energy",
    }
    group_prefixes: ClassVar = {**MACE.group_prefixes, "local_charges": ("charge_per_element",)}

    def __init__(
        self,
        *,
        smearing: Annotated[float, Bounds(above=0), Unit("Angstrom"), Doc("charge width")] = 1.0,
        electrostatics: Summation = "direct",
        pbc_handling: BoundaryMethod = "auto",
        **short_ranged: Any,
    ) -> None:
        super().__init__(**short_ranged)
        start = 0.1 * torch.randn(len(self.atomic_numbers), dtype=torch.float64)
        self.charge_per_element = nn.Parameter(start)
        options = ElectrostaticsOptions(
            density_max_l=0,
            smearing_width=smearing,
            feature_max_l=0,
            feature_widths=(smearing,),
            kspace_window=0.3,
            pbc_handling=pbc_handling,
        )
        self.electrostatics = build_electrostatics(electrostatics, options)

    @property
    def density(self) -> DensityInfo:
        """The charges."""
        return DensityInfo(0, self.config["smearing"], "charges that depend on the element")

    def observe(self, geometry: Geometry, batch: Batch, request: Request) -> Observables:
        """The short-ranged energy plus that of the charges, and the charges."""
        found = super().observe(geometry, batch, request)
        own = self.charge_per_element[geometry.element]
        missing = (batch.total_charge - geometry.sum_over_atoms(own)) / batch.atoms_per_graph
        density = (own + missing[geometry.batch]).unsqueeze(-1)
        sums = self.electrostatics
        plan = sums.plan(
            geometry.positions, geometry.cell, geometry.pbc, geometry.batch, geometry.ptr
        )
        electrostatic = plan.energy(density)
        dipole = sums.dipole(geometry.positions, density, geometry.batch, geometry.n_graphs)
        field = (batch.external_field * dipole).sum(-1)
        return dataclasses.replace(
            found,
            energy=found.energy + electrostatic + field,
            density=density,
            dipole=dipole,
            total_charge=geometry.sum_over_atoms(density[:, 0]),
            electrostatic_energy=electrostatic,
            field_energy=field,
        )
