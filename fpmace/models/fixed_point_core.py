"""FixedPointCore: the fixed-point model as pure functions of geometry, density and Fermi level.

No loop, no solver, no optimizer lives here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Options
from fpmace.blocks.linear import Linear
from fpmace.blocks.options import build_block
from fpmace.blocks.update_rule import NodeContext, UpdateRule
from fpmace.data.batch import Batch
from fpmace.density_modes.base import Solution
from fpmace.electrostatics import options as field
from fpmace.electrostatics.base import Electrostatics, build_electrostatics
from fpmace.electrostatics.gaussian import conjugate_norms
from fpmace.electrostatics.options import ElectrostaticsOptions
from fpmace.errors import ConfigError
from fpmace.models import options as opt
from fpmace.models.backbone import BackboneOutput
from fpmace.models.backbone_model import BackboneModel
from fpmace.models.base import BACKBONE_GROUPS, DensityInfo, Request
from fpmace.models.conjugate import complete_conjugate, tell_what_is_lost
from fpmace.models.fragments import fragments_of
from fpmace.models.geometry import Geometry
from fpmace.models.isolated_atoms import bonded
from fpmace.models.linearised_map import AutogradLinearisation, OneBodyLinearisation
from fpmace.models.local_state import AtomicPart, EnergyTerms, LocalState
from fpmace.models.solving import find_density, reference_state
from fpmace.observables.types import OUTPUTS, Observables
from fpmace.registry import PartConfig, get, register_model
from fpmace.scf.fragments import HeldFragments
from fpmace.scf.problem import FixedPointProblem, Linearisation
from fpmace.scf.quadratic import QuadraticForm, QuadraticLinearisation
from fpmace.scf.state import ScfState

logger = logging.getLogger(__name__)

DEFAULT_UPDATE = {
    "type": "OneBodyVariableUpdate",
    "potential_embedding_cls": "BiasedLinearPotentialEmbedding",
    "nonlinearity_cls": "NoNonLinearity",
}
LINEAR_LOCAL_DENSITY = "ScaledLinearLocalDensity"
DEFAULT_READOUT = {"type": "StrictQuadraticFieldEnergyReadout"}


class LayerFeatureMixer(nn.Module):
    """Sum over layers of a linear map of each layer's features."""

    def __init__(self, irreps: Irreps, n_layers: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(Linear(irreps, irreps) for _ in range(n_layers))

    def forward(self, layers: list[Tensor]) -> Tensor:
        """List of [n_atoms, irreps.dim] to [n_atoms, irreps.dim]."""
        mixed = self.linears[0](layers[0])
        for linear, feats in zip(list(self.linears)[1:], layers[1:], strict=True):
            mixed = mixed + linear(feats)
        return mixed


@register_model("FixedPoint")
class FixedPointCore(BackboneModel):
    """Self-consistent density on a MACE backbone.

    The map is ``G(density, mu) = local density + update(features(density) + field + mu)``; its
    fixed point gives the energy: free atoms, backbone readouts, electrostatics, external field
    and a density-dependent readout.
    """

    has_density = True
    solves_self_consistency = True
    outputs = OUTPUTS - {"spin_density"}
    inputs = frozenset({"total_charge", "external_field", "fermi_level"})
    group_prefixes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **BACKBONE_GROUPS,
        "field_block": ("field_dependent_charges_map.",),
        "local_charges": ("lr_source_maps.", "layer_feature_mixer."),
        "local_electron_energy": ("local_electron_energy.", "electronegativity"),
    }

    electrostatics: Electrostatics
    field_feature_norms: Tensor
    fermi_level_offset: Tensor

    def __init__(
        self,
        *,
        kspace_cutoff_factor: field.CutoffFactor = 1.5,
        kspace_window: field.CutoffWindow = 0.1,
        atomic_multipoles_max_l: field.DensityDegree = 1,
        atomic_multipoles_smearing_width: field.SmearingWidth = 1.5,
        field_feature_max_l: field.FeatureDegree = 1,
        field_feature_widths: field.FeatureWidths = (1.5, 3.0),
        field_feature_norms: opt.FeatureNorms = None,
        field_si: field.FieldSelfInteraction = False,
        include_electrostatic_self_interaction: field.EnergySelfInteraction = False,
        quadrupole_feature_corrections: field.QuadrupoleCorrections = False,
        pbc_handling: field.BoundaryMethod = "auto",
        electrostatics: field.Summation = "auto",
        fermi_level_offset: opt.FermiLevelOffset = 0.0,
        atom_density_scaling: opt.DensityScaling = None,
        use_linear_local_charges: opt.LinearLocalDensity = False,
        local_density_config: opt.LocalDensity = None,
        fixedpoint_update_config: opt.Update = DEFAULT_UPDATE,
        field_readout_config: opt.FieldReadout = DEFAULT_READOUT,
        add_local_electron_energy: opt.ElectronEnergy = True,
        anchor_isolated_atoms: opt.AnchorAtoms = False,
        return_electrostatic_potentials: opt.ReturnPotentials = False,
        **backbone: Any,
    ) -> None:
        super().__init__(**backbone)
        config = self.config
        self.add_local_electron_energy = add_local_electron_energy
        self.return_electrostatic_potentials = return_electrostatic_potentials
        self.readouts = self.energy_readouts(nonlinear=True)
        self.electrostatics = build_electrostatics(
            electrostatics,
            ElectrostaticsOptions.of_model(self.config),
            derivatives=1,
        )
        node_irreps = Irreps(config["hidden_irreps"])
        context: Options = {
            "node_irreps": node_irreps,
            "density_irreps": self.electrostatics.density_irreps,
            "field_irreps": self.electrostatics.field_irreps,
            "edge_irreps": self.backbone.edge_irreps,
            "n_elements": len(config["atomic_numbers"]),
            "n_edge_features": config["num_bessel"],
            "avg_num_neighbors": config["avg_num_neighbors"],
            "radial_MLP": list(config["radial_MLP"]),
            "readout_irreps": Irreps(config["MLP_irreps"]),
            "fermi_level_offset": float(fermi_level_offset),
        }
        scale = opt.scale_per_element(atom_density_scaling, tuple(config["atomic_numbers"]))
        readout = _local_density_part(local_density_config, use_linear_local_charges)
        if atom_density_scaling is not None:
            _warn_if_unscaled(readout)
        self.lr_source_maps = nn.ModuleList(
            build_block(
                "local_density_readout",
                readout,
                where="local_density_config",
                density_scale=scale,
                **context,
            )
            for _ in range(config["num_interactions"])
        )
        self.layer_feature_mixer = LayerFeatureMixer(node_irreps, config["num_interactions"])
        self.field_dependent_charges_map = build_block(
            "update_rule", fixedpoint_update_config, where="fixedpoint_update_config", **context
        )
        self.local_electron_energy = build_block(
            "field_readout", field_readout_config, where="field_readout_config", **context
        )
        self.has_conjugate_features = field_feature_norms == "conjugate"
        norms: Sequence[float] | str | None = field_feature_norms
        if field_feature_norms == "conjugate":
            norms = conjugate_norms(field_feature_max_l, field_feature_widths[0])
        self.register_buffer(
            "field_feature_norms",
            expanded_norms(norms, len(field_feature_widths), field_feature_max_l),
        )
        offset = torch.tensor(float(fermi_level_offset), dtype=torch.float64)
        self.register_buffer("fermi_level_offset", offset)
        self.anchor_isolated_atoms = anchor_isolated_atoms
        if anchor_isolated_atoms:
            zero = torch.zeros(len(config["atomic_numbers"]), dtype=torch.float64)
            self.electronegativity = nn.Parameter(zero)
        if anchor_isolated_atoms and not self.energy_is_stationary:
            raise ConfigError(
                "true needs a passive update rule together with VariationalFieldReadout, whose "
                "energy vanishes for an atom without charge; use false",
                where="anchor_isolated_atoms",
            )
        tell_what_is_lost(self.update_rule, self.local_electron_energy, add_local_electron_energy)

    @staticmethod
    def complete_options(given: Options) -> Options:
        """Choose the features of parts that need conjugate potentials; anchor their energy."""
        return complete_conjugate(given)

    def complete_state_dict(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        """Anchored models of earlier files have no electronegativities: zero is the same."""
        if self.anchor_isolated_atoms:
            state_dict.setdefault(
                f"{prefix}electronegativity", torch.zeros_like(self.electronegativity)
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *further: Any, **named: Any
    ) -> None:
        self.complete_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *further, **named)

    @property
    def energy_is_stationary(self) -> bool:
        """True for a passive rule together with the energy that belongs to it."""
        readout = self.add_local_electron_energy and self.local_electron_energy.is_variational
        return bool(self.update_rule.is_passive and readout)

    @staticmethod
    def check_options(options: Options) -> None:
        """Refuse options that do not fit together, before anything is built.

        Raises:
            ConfigError: naming the option.
        """
        opt.check_backbone(options)
        opt.check_norms(options)
        _local_density_part(options["local_density_config"], options["use_linear_local_charges"])

    @property
    def density(self) -> DensityInfo:
        """Self-consistent multipoles."""
        options = self.electrostatics.options
        return DensityInfo(
            options.density_max_l, options.smearing_width, "self-consistent multipoles"
        )

    @property
    def update_rule(self) -> UpdateRule:
        """The field-dependent part of the map."""
        rule: UpdateRule = self.field_dependent_charges_map
        return rule

    def observe(self, geometry: Geometry, batch: Batch, request: Request) -> Observables:
        """Find the density as the mode says, and evaluate the energy there."""
        mode = request.density_mode
        fragments = self._fragments(batch) if mode.holds_fragments else None
        local = self.local_part(geometry, batch.external_field, fragments)
        charge = batch.total_charge if mode.constant_charge else None
        problem = self.problem(local, charge, batch.atoms_per_graph)
        reference = reference_state(batch, self.electrostatics.n_density)
        solution = find_density(problem, reference, request, batch)
        return self._assemble(local, solution, problem, request.outputs)

    def atomic_part(self, geometry: Geometry) -> AtomicPart:
        """Evaluate what depends on neither the density nor the electrostatics."""
        output = self.backbone_features(geometry)
        layers = output.node_feats_per_layer
        atomic = self.atomic_energies_fn(geometry.element, geometry.head)
        columns = [atomic, *self.local_columns(output, geometry)]
        node_energies = torch.stack(columns, dim=-1)
        mixed = self.layer_feature_mixer(layers)
        density = self.lr_source_maps[0](layers[0], geometry.element)
        for source, feats in zip(list(self.lr_source_maps)[1:], layers[1:], strict=True):
            density = density + source(feats, geometry.element)
        if self.anchor_isolated_atoms:
            share = bonded(geometry, self.r_max, self.config["num_polynomial_cutoff"])
            share = share.unsqueeze(-1)
            density = share * density
            node_energies = torch.cat([node_energies[:, :1], share * node_energies[:, 1:]], dim=-1)
        return AtomicPart(
            node_energies=node_energies,
            local_density=density,
            mixed_feats=mixed,
            last_feats=layers[-1],
            prepared=self.update_rule.prepare(_context(output, geometry, mixed, density)),
            readout_context=_context(output, geometry, layers[-1], density),
        )

    def _fragments(self, batch: Batch) -> HeldFragments:
        """The fragments of a batch and their charges.

        Raises:
            ConfigError: if the update rule is not passive.
            DataError: if a structure lacks the labels, or they contradict its total charge.
        """
        if not (self.update_rule.is_passive and self.update_rule.is_affine):
            raise ConfigError(
                "fragment needs a passive rule that is affine, such as OneBodyPassiveUpdate; use "
                "structure",
                where="scf.charge_per",
            )
        return fragments_of(batch)

    def local_part(
        self,
        geometry: Geometry,
        external_field: Tensor,
        fragments: HeldFragments | None = None,
    ) -> LocalState:
        """Evaluate all that does not depend on the density.

        Args:
            geometry: from :func:`fpmace.models.geometry.make_geometry`.
            external_field: [n_graphs, 3] V/Angstrom, gradient of the potential.
            fragments: groups of atoms that keep their charge; None: structures do.
        """
        part = self.atomic_part(geometry)
        node_energies = part.node_energies
        if fragments is not None:
            response = self.update_rule.response_matrices(part.prepared)
            fragments.check(response.detach(), part.local_density.detach())
        return LocalState(
            geometry=geometry,
            plan=self.electrostatics.plan(
                geometry.positions, geometry.cell, geometry.pbc, geometry.batch, geometry.ptr
            ),
            contributions=geometry.sum_over_atoms(node_energies),
            node_energy=node_energies.sum(-1),
            local_density=part.local_density,
            mixed_feats=part.mixed_feats,
            last_feats=part.last_feats,
            prepared=part.prepared,
            readout_context=part.readout_context,
            fragments=fragments,
            external_field=external_field,
            external_features=self.electrostatics.external_features(
                geometry.positions, geometry.batch, external_field, None
            ),
        )

    def features(self, local: LocalState, density: Tensor, fermi_level: Tensor) -> Tensor:
        """Normalised field features [n_atoms, n_features].

        Args:
            density: [n_atoms, n_lm] e Angstrom^l.
            fermi_level: [n_atoms] eV, the level at each atom.
        """
        level = fermi_level - self.fermi_level_offset
        if self.anchor_isolated_atoms:
            level = level + self.electronegativity[local.geometry.element]
        if self.has_conjugate_features:
            return self._conjugate_potential(local, density, level)
        raw = local.plan.potential_features(density)
        raw = raw + local.external_features
        raw = raw + self.electrostatics.fermi_features(level)
        return raw / self.field_feature_norms

    def _conjugate_potential(self, local: LocalState, density: Tensor, level: Tensor) -> Tensor:
        """The same where the features are conjugate to the multipoles, from the energy's form."""
        potential = local.plan.conjugate_potential(density)
        constant = torch.nn.functional.pad(level.unsqueeze(-1), (0, density.shape[1] - 1))
        potential = potential + local.external_features / self.field_feature_norms + constant
        return self._with_fragment_levels(local, potential)

    def _with_fragment_levels(self, local: LocalState, potential: Tensor) -> Tensor:
        """The potential with which every fragment has its charge."""
        if local.fragments is None:
            return potential
        response = self.update_rule.response_matrices(local.prepared)
        return local.fragments.shifted(potential, response, local.local_density)

    def scf_step(
        self, local: LocalState, density: Tensor, fermi_level: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Evaluate the map G once.

        Returns:
            (new density [n_atoms, n_lm], normalised features [n_atoms, n_features]).
        """
        features = self.features(local, density, fermi_level)
        return local.local_density + self.update_rule(features, local.prepared), features

    def build_observables(
        self, local: LocalState, state: ScfState, features: Tensor, charge: Tensor | None = None
    ) -> EnergyTerms:
        """Energies of a density and its features.

        A stationary energy is that of the density which answers to the features, with the charge
        error times the Fermi level: an error of the solution enters it squared.

        Args:
            state: density [n_atoms, n_lm] and Fermi level [n_graphs].
            features: [n_atoms, n_features], normalised.
            charge: [n_graphs] e that was to be held, None at constant Fermi level.
        """
        geometry, density = local.geometry, state.density
        if self.energy_is_stationary:
            features = self._with_fragment_levels(local, features)
            density = local.local_density + self.update_rule(features, local.prepared)
        electrostatic = local.plan.energy(density)
        dipole = self.electrostatics.dipole(
            geometry.positions, density, geometry.batch, geometry.n_graphs
        )
        field = (local.external_field * dipole).sum(-1)
        electron = torch.zeros_like(field)
        if self.add_local_electron_energy:
            per_atom = self.local_electron_energy(features, density, local.readout_context)
            if self.anchor_isolated_atoms:
                per_atom = per_atom + self.electronegativity[geometry.element] * density[:, 0]
            if self.energy_is_stationary:
                more = self.update_rule.energy_beyond_quadratic(features, local.prepared)
                per_atom = per_atom if more is None else per_atom + more
            electron = geometry.sum_over_atoms(per_atom)
        total = local.contributions.sum(-1) + electrostatic + field + electron
        if self.energy_is_stationary and charge is not None:
            missing = geometry.sum_over_atoms(density[:, 0]) - charge
            total = total + state.fermi_level * missing
        return EnergyTerms(total, electrostatic, electron, field, dipole, density)

    def problem(
        self, local: LocalState, total_charge: Tensor | None, atoms_per_graph: Tensor
    ) -> FixedPointProblem:
        """The fixed-point problem of a batch.

        Args:
            total_charge: [n_graphs] e to hold the charge, None to hold the Fermi level.
        """
        rule = self.update_rule
        quadratic = self._quadratic_form(local) if rule.is_passive and rule.is_affine else None
        return FixedPointProblem(
            evaluate=lambda density, level: self.scf_step(local, density, level),
            features=lambda density, level: self.features(local, density, level),
            linearise=lambda density, level: (
                self._linearise(local, density, level)
                if quadratic is None
                else QuadraticLinearisation(quadratic)
            ),
            local_density=local.local_density,
            batch=local.geometry.batch,
            atoms_per_graph=atoms_per_graph,
            target_charge=total_charge,
            is_affine=rule.is_affine,
            is_convex=rule.is_passive,
            potentials=lambda density: self.potentials_at_atoms(local, density),
            quadratic=quadratic,
            stationary=self.energy_is_stationary and total_charge is not None,
        )

    def _quadratic_form(self, local: LocalState, features: Tensor | None = None) -> QuadraticForm:
        """The form of a passive rule; at given features where it is not affine."""
        plan = local.plan.detach()
        return QuadraticForm(
            response=self.update_rule.response_matrices(local.prepared, features).detach(),
            interaction=plan.conjugate_potential,
            fragments=None if local.fragments is None else local.fragments.groups,
            own=self.electrostatics.self_energy.to(local.local_density.dtype),
            dense_interaction=plan.conjugate_dense if plan.has_dense else None,
        )

    def potentials_at_atoms(self, local: LocalState, density: Tensor) -> Tensor:
        """[n_atoms] V: potential of the smeared density and of the external field."""
        geometry = local.geometry
        field = local.external_field[geometry.batch]
        potential = local.plan.potential_at_atoms(density)
        return potential + (field * geometry.positions).sum(-1)

    def _assemble(
        self,
        local: LocalState,
        solution: Solution,
        problem: FixedPointProblem,
        wanted: frozenset[str],
    ) -> Observables:
        state = ScfState(solution.density, solution.fermi_level)
        terms = self.build_observables(local, state, solution.features, problem.target_charge)
        density = terms.density
        potentials = None
        if "electrostatic_potentials" in wanted or self.return_electrostatic_potentials:
            potentials = self.potentials_at_atoms(local, density)
        return Observables(
            energy=terms.total,
            node_energy=local.node_energy,
            dipole=terms.dipole,
            density=density,
            fermi_level=solution.fermi_level,
            total_charge=local.geometry.sum_over_atoms(density[:, 0]),
            electrostatic_energy=terms.electrostatic,
            electron_energy=terms.electron,
            field_energy=terms.field,
            contributions=local.contributions,
            electrostatic_features=solution.features,
            electrostatic_potentials=potentials,
            field_independent_density=local.local_density,
            scf=solution.scf,
            problem=problem if "problem" in wanted else None,
            hold_density=solution.hold_density,
        )

    def _linearise(self, local: LocalState, density: Tensor, level: Tensor) -> Linearisation:
        rule = self.update_rule
        kind = OneBodyLinearisation if rule.is_one_body else AutogradLinearisation
        with torch.no_grad():
            features = self.features(local, density, level).detach()
            if rule.is_passive:
                return QuadraticLinearisation(self._quadratic_form(local, features))
        return kind(
            local.plan,
            lambda values: rule(values, local.prepared),
            self.field_feature_norms,
            features,
        )


def _context(
    output: BackboneOutput, geometry: Geometry, node_feats: Tensor, density: Tensor
) -> NodeContext:
    return NodeContext(
        node_feats=node_feats,
        element=geometry.element,
        edges=geometry.edges,
        edge_attrs=output.edge_attrs,
        edge_feats=output.edge_feats,
        local_density=density,
        batch=geometry.batch,
    )


def _local_density_part(given: PartConfig | None, linear: bool) -> PartConfig:
    """The local density readout of each layer, from the two options that choose it."""
    if given is None:
        return LINEAR_LOCAL_DENSITY if linear else "GatedLocalDensity"
    name = given if isinstance(given, str) else given["type"]
    if linear and name != LINEAR_LOCAL_DENSITY:
        raise ConfigError(
            f"true asks for {LINEAR_LOCAL_DENSITY}, but local_density_config names {name}; "
            "leave one out",
            where="use_linear_local_charges",
        )
    return given


def _warn_if_unscaled(readout: PartConfig) -> None:
    name = readout if isinstance(readout, str) else readout["type"]
    if "density_scale" not in get("local_density_readout", name).context:
        logger.warning(
            "atom_density_scaling has no effect: %s takes no scale; use_linear_local_charges "
            "chooses a readout that takes one",
            name,
        )


def expanded_norms(norms: Sequence[float] | str | None, n_widths: int, max_l: int) -> Tensor:
    """One norm per (degree, width), repeated over the components of the degree."""
    values = [1.0] * n_widths * (max_l + 1) if norms is None else [float(value) for value in norms]
    repeats = torch.tensor(
        [2 * degree + 1 for degree in range(max_l + 1) for _ in range(n_widths)]
    )
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(repeats)
