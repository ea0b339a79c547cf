"""PolarMACE: multipoles of spin up and down, corrected in a few steps or to self-consistency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Options
from fpmace.blocks.linear import Linear
from fpmace.blocks.spin_density import (
    N_SPINS,
    BiasedReadout,
    SpinFieldReadout,
    SpinTargets,
    SpinUpdate,
    both_spins,
)
from fpmace.data.batch import Batch
from fpmace.density_modes.base import Solution
from fpmace.electrostatics import options as field
from fpmace.electrostatics.base import Electrostatics, build_electrostatics
from fpmace.electrostatics.options import ElectrostaticsOptions
from fpmace.errors import ConfigError
from fpmace.models import options as opt
from fpmace.models import spin_state as spins
from fpmace.models.backbone import BackboneOutput
from fpmace.models.backbone_model import BackboneModel
from fpmace.models.base import BACKBONE_GROUPS, DensityInfo, Request
from fpmace.models.fixed_point_core import LayerFeatureMixer, expanded_norms
from fpmace.models.geometry import Geometry
from fpmace.models.linearised_map import MapLinearisation
from fpmace.models.local_density import CHARGE_OUTPUTS, LocalEnergies
from fpmace.models.mace import ScaleShift, for_heads
from fpmace.models.solving import find_density, reference_state
from fpmace.models.spin_state import SpinState, spins_of, unknowns_of
from fpmace.observables.types import Observables, Unknowns
from fpmace.registry import register_model
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState


class _LayerSource(nn.Module):
    def __init__(self, node_irreps: Irreps, density_irreps: Irreps) -> None:
        super().__init__()
        self.linear = Linear(node_irreps, both_spins(density_irreps))

    def forward(self, node_feats: Tensor) -> Tensor:
        return self.linear(node_feats)


@register_model("PolarMACE")
class PolarMACE(BackboneModel):
    """Charges and spins of the atoms that answer to the potential; total charge and spin held.

    ``rho = [up | down]`` begins as a linear function of the features; learned weights share out
    what each spin lacks of ``(Q +- (M - 1)) / 2`` for total charge Q and multiplicity M. Then
    ``num_recursion_steps`` maps change it by the potential that it makes, and the energy is
    ``sum_i [E0 + scale readouts + shift] + E_es(up + down) + F . D + sum_i e(rho, rho_0, v)``.
    With ``recursion: fixed_point`` the last map is iterated until its density reproduces itself.
    I. Batatia et al., MACE-POLAR-1 (2026).
    """

    has_density = True
    outputs = CHARGE_OUTPUTS | {"spin_density", "electron_energy", "polarizability"}
    inputs = frozenset({"total_charge", "total_spin", "external_field"})
    required_inputs = frozenset({"total_charge", "total_spin"})
    free_options = frozenset({"recursion"})
    group_prefixes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **BACKBONE_GROUPS,
        "field_block": ("field_dependent_charges_maps.",),
        "local_charges": ("lr_source_maps.", "layer_feature_mixer.", "fukui_source_map."),
        "local_electron_energy": ("local_electron_energy.",),
    }

    electrostatics: Electrostatics
    field_feature_norms: Tensor

    def __init__(
        self,
        *,
        recursion: spins.Recursion = "steps",
        num_recursion_steps: spins.RecursionSteps = 2,
        fukui_weights: spins.FukuiWeights = "positive",
        shared_readout: spins.SharedReadout = False,
        kspace_cutoff_factor: field.CutoffFactor = 1.5,
        kspace_window: field.CutoffWindow = 0.1,
        atomic_multipoles_max_l: field.DensityDegree = 1,
        atomic_multipoles_smearing_width: field.SmearingWidth = 1.5,
        field_feature_max_l: field.FeatureDegree = 1,
        field_feature_widths: field.FeatureWidths = (1.5, 3.0),
        field_feature_norms: spins.SpinFeatureNorms = None,
        field_si: field.FieldSelfInteraction = False,
        include_electrostatic_self_interaction: field.EnergySelfInteraction = True,
        quadrupole_feature_corrections: field.QuadrupoleCorrections = False,
        pbc_handling: field.BoundaryMethod = "auto",
        electrostatics: field.Summation = "direct",
        add_local_electron_energy: opt.ElectronEnergy = True,
        atomic_inter_scale: opt.EnergyScale = 1.0,
        atomic_inter_shift: opt.EnergyShift = 0.0,
        interaction_cls_first: opt.FirstInteraction = spins.NON_LINEAR,
        interaction_cls: opt.Interaction = spins.NON_LINEAR,
        apply_cutoff: opt.ApplyCutoff = False,
        use_agnostic_product: opt.AgnosticProduct = True,
        **backbone: Any,
    ) -> None:
        super().__init__(
            interaction_cls_first=interaction_cls_first,
            interaction_cls=interaction_cls,
            apply_cutoff=apply_cutoff,
            use_agnostic_product=use_agnostic_product,
            **backbone,
        )
        self.solves_self_consistency = self.solves(self.config)
        self.outputs = self.outputs_with(self.config)
        self.fukui_weights = fukui_weights
        self.shared_readout = shared_readout
        self.readouts = self.energy_readouts(nonlinear=len(self.backbone.layer_irreps) > 1)
        if shared_readout:
            self.readouts = self.readouts[-1:]
        self.scale_shift = ScaleShift(
            for_heads("atomic_inter_scale", atomic_inter_scale, len(self.heads)),
            for_heads("atomic_inter_shift", atomic_inter_shift, len(self.heads)),
        )
        self.electrostatics = build_electrostatics(
            electrostatics,
            ElectrostaticsOptions.of_model(self.config),
            derivatives=1,
        )
        n_widths = len(field_feature_widths)
        if field_feature_norms is None:
            vectors = [spins.VECTOR_NORM] * (n_widths * field_feature_max_l)
            field_feature_norms = (*[spins.SCALAR_NORM] * n_widths, *vectors)
        norms = expanded_norms(field_feature_norms, n_widths, field_feature_max_l)
        self.register_buffer("field_feature_norms", norms)
        self._build_density(num_recursion_steps, add_local_electron_energy)

    def _build_density(self, n_steps: int, with_energy: bool) -> None:
        irreps: Options = {
            "node_irreps": self.backbone.layer_irreps[-1],
            "field_irreps": self.electrostatics.field_irreps,
            "density_irreps": self.electrostatics.density_irreps,
        }
        node, density = irreps["node_irreps"], irreps["density_irreps"]
        n_layers = len(self.backbone.layer_irreps)
        self.lr_source_maps = nn.ModuleList(_LayerSource(node, density) for _ in range(n_layers))
        hidden = Irreps(self.config["MLP_irreps"])
        pair = Irreps(f"{N_SPINS}x0e")
        self.fukui_source_map = BiasedReadout(node, hidden, pair, self.config["gate"])
        self.layer_feature_mixer = LayerFeatureMixer(node, n_layers)
        n_elements = len(self.config["atomic_numbers"])
        self.field_dependent_charges_maps = nn.ModuleList(
            SpinUpdate(n_elements=n_elements, **irreps) for _ in range(n_steps)
        )
        self.local_electron_energy = SpinFieldReadout(**irreps) if with_energy else None

    @classmethod
    def solves(cls, options: Options) -> bool:
        """Whether the last map is iterated."""
        return bool(options.get("recursion") == "fixed_point")

    @classmethod
    def outputs_with(cls, options: Options) -> frozenset[str]:
        """Those of the loop too where there is one."""
        return cls.outputs | {"scf"} if cls.solves(options) else cls.outputs

    @staticmethod
    def check_options(options: Options) -> None:
        """Refuse options that do not fit together, before anything is built.

        Raises:
            ConfigError: naming the option.
        """
        opt.check_backbone(options)
        opt.check_norms(options)

    @property
    def density(self) -> DensityInfo:
        """The multipoles of both spins together."""
        options = self.electrostatics.options
        return DensityInfo(options.density_max_l, options.smearing_width, "multipoles in a field")

    @property
    def updates(self) -> list[SpinUpdate]:
        """The maps in their order."""
        return list(self.field_dependent_charges_maps)  # type: ignore[arg-type]

    def observe(self, geometry: Geometry, batch: Batch, request: Request) -> Observables:
        """Find the density of both spins and evaluate the energy there."""
        features = self.backbone_features(geometry)
        state = self.spin_state(features.node_feats_per_layer, geometry, batch)
        local = self.local_energies(features, geometry)
        if not self.solves_self_consistency:
            density, seen = self.step(state, -1, state.start)
            return self._assemble(state, local, geometry, batch, density, seen, request)
        problem = self.problem(state, batch)
        found = self._solve(problem, batch, request)
        observables = self._assemble(
            state, local, geometry, batch, spins_of(found.density), found.features, request
        )
        observables.scf, observables.hold_density = found.scf, found.hold_density
        observables.unknowns = Unknowns(found.density, problem.local_density)
        return observables

    def local_energies(self, features: BackboneOutput, geometry: Geometry) -> LocalEnergies:
        """Free atoms, and the readouts and the repulsion scaled and shifted; embedded inputs."""
        atomic = self.atomic_energies_fn(geometry.element, geometry.head)
        read = torch.stack(self.readout_energies(features.node_feats_per_layer, geometry)).sum(0)
        pairs = self.pair_energies(geometry)
        read = read if pairs is None else read + pairs
        columns = [atomic, self.scale_shift(read, geometry.head)]
        node_energy = torch.stack(columns).sum(0)
        embedded = self.embedding_energies(features, geometry)
        columns += [] if embedded is None else [embedded]
        return LocalEnergies(node_energy, geometry.sum_over_atoms(torch.stack(columns, dim=-1)))

    def readout_energies(self, layers: list[Tensor], geometry: Geometry) -> list[Tensor]:
        """[n_atoms] eV of each layer's readout; of the only one for every layer if shared."""
        if not self.shared_readout:
            return super().readout_energies(layers, geometry)
        (readout,) = self.readouts
        return [readout(feats, geometry.head) for feats in layers]

    def spin_state(self, layers: list[Tensor], geometry: Geometry, batch: Batch) -> SpinState:
        """Evaluate all that does not depend on the density that the last map changes."""
        sources = zip(self.lr_source_maps, layers, strict=True)
        density = torch.stack([source(feats) for source, feats in sources]).sum(0)
        positive = self.fukui_weights == "positive"
        targets = SpinTargets.of(batch.total_charge, batch.total_spin, geometry.batch, positive)
        first = targets.hold(
            density.unflatten(1, (N_SPINS, -1)), self.fukui_source_map(layers[-1])
        )
        mixed = self.layer_feature_mixer(layers)
        centre = geometry.sum_over_atoms(geometry.positions) / batch.atoms_per_graph.unsqueeze(-1)
        state = SpinState(
            plan=self.electrostatics.plan(
                geometry.positions, geometry.cell, geometry.pbc, geometry.batch, geometry.ptr
            ),
            external=0.5
            * self.electrostatics.external_features(
                geometry.positions - centre[geometry.batch], geometry.batch, batch.external_field
            ),
            first=first,
            start=first,
            prepared=[update.prepare(mixed, geometry.element) for update in self.updates],
            targets=targets,
            last_feats=layers[-1],
        )
        for index in range(len(self.updates) - 1):
            state = replace(state, start=self.step(state, index, state.start)[0])
        return state

    def features(self, state: SpinState, density: Tensor) -> Tensor:
        """Normalised features of each spin's potential and half the field, [n_atoms, 2 n]."""
        own = [state.plan.potential_features(density[:, spin]) for spin in range(N_SPINS)]
        both = torch.stack(own, 1) + state.external.unsqueeze(1)
        return (both / self.field_feature_norms).flatten(1)

    def step(self, state: SpinState, index: int, density: Tensor) -> tuple[Tensor, Tensor]:
        """Change ``state.start`` by the map ``index``, seen at ``density`` [n_atoms, 2, n_lm].

        Returns:
            (density [n_atoms, 2, n_lm] with the right charges, features that the map saw).
        """
        features = self.features(state, density)
        change, weight = self.updates[index](features, density, state.prepared[index])
        return state.targets.hold(state.start + change, weight), features

    def problem(self, state: SpinState, batch: Batch) -> FixedPointProblem:
        """The density that the last map returns unchanged; unknowns ``[up + down | up - down]``.

        The map itself gives both spins their charges, so that no level is an unknown.
        """
        detached = replace(state, plan=state.plan.detach())

        def evaluate(
            unknowns: Tensor, level: Tensor, state: SpinState = state
        ) -> tuple[Tensor, Tensor]:
            density, features = self.step(state, -1, spins_of(unknowns))
            return unknowns_of(density), features

        return FixedPointProblem(
            evaluate=evaluate,
            features=lambda unknowns, level: self.features(state, spins_of(unknowns)),
            linearise=lambda unknowns, level: MapLinearisation(
                lambda value: evaluate(value, level, detached)[0], unknowns, state.plan.padding
            ),
            local_density=unknowns_of(state.start),
            batch=state.targets.batch,
            atoms_per_graph=batch.atoms_per_graph,
            target_charge=None,
            is_affine=False,
        )

    def _solve(self, problem: FixedPointProblem, batch: Batch, request: Request) -> Solution:
        mode = request.density_mode
        if not mode.constant_charge or mode.holds_fragments:
            raise ConfigError(
                "a PolarMACE holds charge and spin of each structure; leave constant_charge and "
                "charge_per out",
                where="scf",
            )
        return find_density(problem, self._reference(batch), request, batch)

    def _reference(self, batch: Batch) -> ScfState:
        """Multipoles and spins of the data; the spin spread evenly where no atom is labelled."""
        n = self.electrostatics.n_density
        charge = reference_state(batch, n)
        spin = torch.zeros_like(charge.density)
        even = (batch.total_spin - 1.0) / batch.atoms_per_graph
        given = batch.weights.get("spins", torch.zeros_like(even)) > 0
        label = batch.labels.get("spins", spin[:, 0])
        spin[:, 0] = torch.where(given[batch.batch], label, even[batch.batch])
        return replace(charge, density=torch.cat([charge.density, spin], dim=1))

    def _assemble(
        self,
        state: SpinState,
        local: LocalEnergies,
        geometry: Geometry,
        batch: Batch,
        density: Tensor,
        features: Tensor,
        request: Request,
    ) -> Observables:
        """The energy of a density, and what comes along."""
        total = density.sum(1)
        electrostatic = state.plan.energy(total)
        dipole = self.electrostatics.dipole(
            geometry.positions, total, geometry.batch, geometry.n_graphs
        )
        in_field = (batch.external_field * dipole).sum(-1)
        electron = torch.zeros_like(in_field)
        if self.local_electron_energy is not None:
            electron = geometry.sum_over_atoms(
                self.local_electron_energy(features, density, state.first, state.last_feats)
            )
        potentials = None
        if "electrostatic_potentials" in request.outputs:
            drop = (batch.external_field[geometry.batch] * geometry.positions).sum(-1)
            potentials = state.plan.potential_at_atoms(total) + drop
        return Observables(
            energy=local.contributions.sum(-1) + electrostatic + in_field + electron,
            node_energy=local.node_energy,
            contributions=local.contributions,
            density=total,
            spin_density=density[:, 0] - density[:, 1],
            dipole=dipole,
            total_charge=geometry.sum_over_atoms(total[:, 0]),
            electrostatic_energy=electrostatic,
            electron_energy=electron,
            field_energy=in_field,
            field_independent_density=state.first.sum(1),
            electrostatic_potentials=potentials,
        )
