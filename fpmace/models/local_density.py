"""Common part of the models whose charges follow from the local surroundings alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from e3nn.o3 import Irreps
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.electrostatics import options as field
from fpmace.electrostatics.base import Electrostatics, build_electrostatics
from fpmace.electrostatics.options import ElectrostaticsOptions
from fpmace.electrostatics.plan import Plan
from fpmace.models import options as opt
from fpmace.models.backbone import BackboneOutput
from fpmace.models.backbone_model import BackboneModel
from fpmace.models.base import BACKBONE_GROUPS, ENERGY_OUTPUTS, DensityInfo, Request
from fpmace.models.geometry import Geometry
from fpmace.observables.types import Observables

CHARGE_OUTPUTS = ENERGY_OUTPUTS | {
    "density",
    "dipole",
    "born_charges",
    "total_charge",
    "electrostatic_energy",
    "field_energy",
    "field_independent_density",
    "electrostatic_potentials",
}
"""Fields of ``Observables`` of a model with charges that solves nothing."""


@dataclass(frozen=True, slots=True)
class LocalMultipoles:
    """Multipoles [n_atoms, n_lm] (e Angstrom^l) and dipole [n_graphs, 3] (e Angstrom)."""

    density: Tensor
    dipole: Tensor
    polarizability: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LocalEnergies:
    """Energies per atom [n_atoms] and per graph [n_graphs, n] (E0, then all others), eV."""

    node_energy: Tensor
    contributions: Tensor


class ChargeModel(BackboneModel):
    """A backbone whose layers all keep full features, its readouts, and electrostatics."""

    has_density = True
    group_prefixes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **BACKBONE_GROUPS,
        "local_charges": ("lr_source_maps.", "charge_shares.", "polarizability_readouts."),
    }
    density_meaning: ClassVar[str]

    electrostatics: Electrostatics

    def __init__(
        self,
        *,
        use_linear_final_readout: opt.LinearFinalReadout = False,
        kspace_cutoff_factor: field.CutoffFactor = 1.5,
        kspace_window: field.CutoffWindow = 0.1,
        atomic_multipoles_smearing_width: field.SmearingWidth = 1.5,
        include_electrostatic_self_interaction: field.EnergySelfInteraction = False,
        pbc_handling: field.BoundaryMethod = "auto",
        electrostatics: field.Summation = "auto",
        **backbone: Any,
    ) -> None:
        super().__init__(**backbone)
        several = len(self.backbone.layer_irreps) > 1
        self.readouts = self.energy_readouts(nonlinear=several and not use_linear_final_readout)
        width = atomic_multipoles_smearing_width
        max_l = self.config.get("atomic_multipoles_max_l", 0)
        self.electrostatics = build_electrostatics(
            electrostatics,
            ElectrostaticsOptions(
                density_max_l=max_l,
                smearing_width=width,
                feature_max_l=max_l,
                feature_widths=(width,),
                kspace_cutoff_factor=kspace_cutoff_factor,
                kspace_window=kspace_window,
                pbc_handling=pbc_handling,
                include_energy_self_interaction=include_electrostatic_self_interaction,
            ),
            derivatives=1,
        )

    @property
    def node_irreps(self) -> Irreps:
        """Features of every layer."""
        return self.backbone.layer_irreps[-1]

    @property
    def density(self) -> DensityInfo:
        """What the multipoles are."""
        options = self.electrostatics.options
        return DensityInfo(options.density_max_l, options.smearing_width, self.density_meaning)

    def local_energies(self, features: BackboneOutput, geometry: Geometry) -> LocalEnergies:
        """Free atoms and the readouts of all layers."""
        atomic = self.atomic_energies_fn(geometry.element, geometry.head)
        columns = torch.stack([atomic, *self.local_columns(features, geometry)], dim=-1)
        return LocalEnergies(columns.sum(-1), geometry.sum_over_atoms(columns))

    def plan(self, geometry: Geometry) -> Plan:
        """What the electrostatics prepares for a geometry."""
        return self.electrostatics.plan(
            geometry.positions, geometry.cell, geometry.pbc, geometry.batch, geometry.ptr
        )

    def moments(self, density: Tensor, geometry: Geometry) -> Tensor:
        """Dipole of a density about the coordinate origin, [n_graphs, 3] e Angstrom."""
        return self.electrostatics.dipole(
            geometry.positions, density, geometry.batch, geometry.n_graphs
        )

    def potentials_at_atoms(
        self, plan: Plan, density: Tensor, geometry: Geometry, external_field: Tensor
    ) -> Tensor:
        """[n_atoms] V: potential of the smeared density and of the external field."""
        drop = (external_field[geometry.batch] * geometry.positions).sum(-1)
        return plan.potential_at_atoms(density) + drop


class LocalDensityModel(ChargeModel):
    """Energy of the backbone's readouts, the electrostatics of local multipoles and the field.

    ``E = sum_i [E0 + sum_t readout_t(h_i^t)] + E_es(rho) + F . D``: a family says what rho and D
    are. Nothing answers to a potential, so nothing is solved; the charges see the external field
    only through the energy.
    """

    outputs = CHARGE_OUTPUTS
    inputs = frozenset({"external_field"})
    density_meaning = "multipoles of the local surroundings"

    def features(self, geometry: Geometry, batch: Batch) -> BackboneOutput:
        """Features of the atoms and edges."""
        return self.backbone_features(geometry)

    @abstractmethod
    def multipoles(
        self, features: BackboneOutput, geometry: Geometry, batch: Batch
    ) -> LocalMultipoles:
        """Multipoles and dipole of the structures."""

    def observe(self, geometry: Geometry, batch: Batch, request: Request) -> Observables:
        """Energy, multipoles and dipole."""
        features = self.features(geometry, batch)
        local = self.local_energies(features, geometry)
        found = self.multipoles(features, geometry, batch)
        plan = self.plan(geometry)
        electrostatic = plan.energy(found.density)
        field = (batch.external_field * found.dipole).sum(-1)
        potentials = None
        if "electrostatic_potentials" in request.outputs:
            potentials = self.potentials_at_atoms(
                plan, found.density, geometry, batch.external_field
            )
        return Observables(
            energy=local.contributions.sum(-1) + electrostatic + field,
            node_energy=local.node_energy,
            contributions=local.contributions,
            density=found.density,
            dipole=found.dipole,
            total_charge=geometry.sum_over_atoms(found.density[:, 0]),
            electrostatic_energy=electrostatic,
            field_energy=field,
            field_independent_density=found.density,
            electrostatic_potentials=potentials,
            polarizability=found.polarizability,
        )
