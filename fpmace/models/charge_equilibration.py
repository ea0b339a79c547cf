"""Charge equilibration: electronegativities, positive hardnesses, and the charges that balance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import expm1, log
from typing import Annotated, Any, ClassVar

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Bounds, Doc, Options, Unit
from fpmace.blocks.formal_charges import given_per_atom
from fpmace.blocks.linear import Linear
from fpmace.blocks.readout import LinearReadout
from fpmace.data.batch import Batch
from fpmace.density_modes.base import Solution
from fpmace.electrostatics import options as field
from fpmace.electrostatics.plan import Plan
from fpmace.errors import ConfigError
from fpmace.models import options as opt
from fpmace.models.backbone import BackboneOutput
from fpmace.models.base import BACKBONE_GROUPS, Request
from fpmace.models.fragments import fragments_of
from fpmace.models.geometry import Geometry
from fpmace.models.local_density import ChargeModel, LocalEnergies
from fpmace.models.solving import find_density, reference_state
from fpmace.observables.types import OUTPUTS, Observables
from fpmace.registry import register_model
from fpmace.scf.fragments import HeldFragments
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.quadratic import QuadraticForm, QuadraticLinearisation

SMALLEST_HARDNESS = 0.05
"""eV/e^2: with it the charges are unique whatever the network says."""

START_POLARIZABILITY = 0.05
"""e Angstrom^(2l)/V: response of the higher multipoles at the start of a training."""


@dataclass(frozen=True, slots=True)
class Equilibration:
    """What the charges of a geometry are balanced against.

    Attributes:
        geometry, plan: positions and electrostatics.
        energies: of the free atoms and the readouts.
        drive: [n_atoms, n_lm] V/Angstrom^l, electronegativities and the external potential.
        response: [n_atoms, n_lm] diagonal of S: 1/hardness, then polarizabilities.
        external_field: [n_graphs, 3] V/Angstrom.
        fragments: groups of atoms that keep their charge; None: structures do.
    """

    geometry: Geometry
    plan: Plan
    energies: LocalEnergies
    drive: Tensor
    response: Tensor
    external_field: Tensor
    fragments: HeldFragments | None = None


@register_model("MACEQEq")
class MACEQEq(ChargeModel):
    """Charges that minimise ``chi.q + 1/2 q.eta.q + E_es(q) + F.D`` at a total charge or level.

    The electronegativities chi and the hardnesses eta > 0 come from the backbone, so that the
    minimum is unique and found by one symmetric solve, at any size. The energy is stationary in
    the charges: forces and stress need no adjoint. With ``atomic_multipoles_max_l`` above 0 the
    higher multipoles answer too, each atom with a positive polarizability per degree. Source:
    A. K. Rappe, W. A. Goddard III, J. Phys. Chem. 95, 3358 (1991).

    Global equilibration answers like a metal: far fragments exchange fractions of charge, and
    polarizabilities grow too fast with size (D. Vondrak et al., npj Comput. Mater. (2025)).
    """

    solves_self_consistency = True
    outputs = OUTPUTS - {"spin_density"}
    inputs = frozenset({"total_charge", "external_field", "fermi_level"})
    group_prefixes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **BACKBONE_GROUPS,
        "local_charges": ("enegs_readouts.", "hardness_readouts.", "multipole_"),
    }
    density_meaning = "charges in equilibrium"

    def __init__(
        self,
        *,
        atomic_multipoles_max_l: field.DensityDegree = 0,
        include_electrostatic_self_interaction: field.EnergySelfInteraction = True,
        default_hardness: Annotated[
            float,
            Bounds(above=SMALLEST_HARDNESS),
            Unit("eV/e^2"),
            Doc("hardness of every atom, or where a trained one starts"),
        ] = 2.0,
        train_hardness: Annotated[bool, Doc("learn the hardness of an atom")] = False,
        read_enegs: Annotated[
            bool, Doc("add electronegativities that the data gives (property enegs)")
        ] = False,
        read_hardness: Annotated[
            bool, Doc("take hardnesses that the data gives (property hardness) for the default")
        ] = False,
        **common: Any,
    ) -> None:
        super().__init__(
            include_electrostatic_self_interaction=include_electrostatic_self_interaction, **common
        )
        self.read_enegs, self.read_hardness = read_enegs, read_hardness
        read = {"enegs": read_enegs, "hardness": read_hardness}
        self.inputs = self.inputs | {name for name, wanted in read.items() if wanted}
        self.default_hardness = default_hardness
        self.enegs_readouts = self._scalar_readouts()
        self.hardness_readouts = self._scalar_readouts() if train_hardness else None
        self.higher = self.electrostatics.density_irreps[1:]
        if self.higher.dim:
            n_degrees = len(self.higher)
            self.multipole_drives = nn.ModuleList(
                Linear(irreps, self.higher) for irreps in self.backbone.layer_irreps
            )
            self.multipole_strength = Linear(self.node_irreps, Irreps(f"{n_degrees}x0e"))

    def _scalar_readouts(self) -> nn.ModuleList:
        layers = self.backbone.layer_irreps
        readouts: list[nn.Module] = [LinearReadout(irreps) for irreps in layers]
        if len(layers) > 1:
            readouts[-1] = self.nonlinear_readout()
        return nn.ModuleList(readouts)

    @staticmethod
    def check_options(options: Options) -> None:
        """Refuse options that do not fit together, before anything is built.

        Raises:
            ConfigError: naming the option.
        """
        opt.check_backbone(options)
        if not options["include_electrostatic_self_interaction"]:
            raise ConfigError(
                "false: without the self-interaction of the Gaussians the electrostatic energy "
                "is not positive and the charges need not be unique; use true",
                where="include_electrostatic_self_interaction",
            )

    @property
    def energy_is_stationary(self) -> bool:
        """True: the charges minimise the energy."""
        return True

    def observe(self, geometry: Geometry, batch: Batch, request: Request) -> Observables:
        """Balance the charges, and evaluate the energy there."""
        mode = request.density_mode
        fragments = fragments_of(batch) if mode.holds_fragments else None
        local = self.equilibration(geometry, batch, fragments)
        charge = batch.total_charge if mode.constant_charge else None
        problem = self.problem(local, charge, batch.atoms_per_graph)
        reference = reference_state(batch, local.drive.shape[1])
        solution = find_density(problem, reference, request, batch)
        return self._assemble(local, solution, problem, charge, request.outputs)

    def equilibration(
        self, geometry: Geometry, batch: Batch, fragments: HeldFragments | None = None
    ) -> Equilibration:
        """Everything that does not depend on the charges."""
        features = self.backbone_features(geometry)
        external = self.electrostatics.external_potential(
            geometry.positions, geometry.batch, batch.external_field, None
        )
        return Equilibration(
            geometry=geometry,
            plan=self.plan(geometry),
            energies=self.local_energies(features, geometry),
            drive=self._drive(features, batch) + external,
            response=self._response(features, batch),
            external_field=batch.external_field,
            fragments=fragments,
        )

    def _drive(self, features: BackboneOutput, batch: Batch) -> Tensor:
        """[n_atoms, n_lm]: electronegativities, and what drives the higher multipoles."""
        layers = features.node_feats_per_layer
        enegs = _summed(self.enegs_readouts, layers)
        if self.read_enegs:
            enegs = enegs + given_per_atom(batch, "enegs", "read_enegs")
        if not self.higher.dim:
            return enegs.unsqueeze(-1)
        return torch.cat([enegs.unsqueeze(-1), _summed(self.multipole_drives, layers)], dim=-1)

    def _response(self, features: BackboneOutput, batch: Batch) -> Tensor:
        """[n_atoms, n_lm]: inverse hardness, then the polarizability of each degree."""
        layers = features.node_feats_per_layer
        like = layers[-1][:, 0]
        start = torch.full_like(like, self.default_hardness)
        if self.read_hardness:
            start = given_per_atom(batch, "hardness", "read_hardness").clamp_min(
                2.0 * SMALLEST_HARDNESS
            )
        raw = _inverse_softplus(start - SMALLEST_HARDNESS)
        if self.hardness_readouts is not None:
            raw = raw + _summed(self.hardness_readouts, layers)
        columns = [1.0 / (nn.functional.softplus(raw) + SMALLEST_HARDNESS)]
        if self.higher.dim:
            offset = log(expm1(START_POLARIZABILITY))
            strength = nn.functional.softplus(self.multipole_strength(layers[-1]) + offset)
            for index, (_, ir) in enumerate(self.higher):
                columns += [strength[:, index]] * ir.dim
        return torch.stack(columns, dim=-1)

    def potentials(self, local: Equilibration, density: Tensor, level: Tensor) -> Tensor:
        """dE/d(multipole) without the cost of the atom itself, plus the level; [n_atoms, n_lm] V.

        Args:
            level: [n_atoms] eV, the Fermi level at each atom.
        """
        potential = local.plan.conjugate_potential(density)
        constant = nn.functional.pad(level.unsqueeze(-1), (0, density.shape[1] - 1))
        return self._with_fragment_levels(local, local.drive + potential + constant)

    def _with_fragment_levels(self, local: Equilibration, potential: Tensor) -> Tensor:
        """The potential with which every fragment has its charge."""
        if local.fragments is None:
            return potential
        response = torch.diag_embed(local.response)
        return local.fragments.shifted(potential, response, torch.zeros_like(potential))

    def problem(
        self, local: Equilibration, total_charge: Tensor | None, atoms_per_graph: Tensor
    ) -> FixedPointProblem:
        """The balance of a batch as a fixed point: ``rho = -S w(rho)``.

        Args:
            total_charge: [n_graphs] e to hold the charge, None to hold the Fermi level.
        """
        form = self._form(local)

        def evaluate(density: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
            potential = self.potentials(local, density, level)
            return -local.response * potential, potential

        geometry, external = local.geometry, local.external_field
        return FixedPointProblem(
            evaluate=evaluate,
            features=lambda density, level: self.potentials(local, density, level),
            linearise=lambda density, level: QuadraticLinearisation(form),
            local_density=torch.zeros_like(local.drive),
            batch=geometry.batch,
            atoms_per_graph=atoms_per_graph,
            target_charge=total_charge,
            is_affine=True,
            is_convex=True,
            potentials=lambda density: self.potentials_at_atoms(
                local.plan, density, geometry, external
            ),
            quadratic=form,
            stationary=total_charge is not None,
        )

    def _form(self, local: Equilibration) -> QuadraticForm:
        plan = local.plan.detach()
        return QuadraticForm(
            response=torch.diag_embed(local.response).detach(),
            fragments=None if local.fragments is None else local.fragments.groups,
            interaction=plan.conjugate_potential,
            own=self.electrostatics.self_energy.to(local.drive.dtype),
            dense_interaction=plan.conjugate_dense if plan.has_dense else None,
        )

    def _assemble(
        self,
        local: Equilibration,
        solution: Solution,
        problem: FixedPointProblem,
        charge: Tensor | None,
        wanted: frozenset[str],
    ) -> Observables:
        """The energy as a function of the potentials w, with rho = -S w."""
        geometry = local.geometry
        potential = self._with_fragment_levels(local, solution.features)
        density = -local.response * potential
        electrostatic = local.plan.energy(density)
        dipole = self.moments(density, geometry)
        in_field = (local.external_field * dipole).sum(-1)
        external = self.electrostatics.external_potential(
            geometry.positions, geometry.batch, local.external_field, None
        )
        cost = (density * (local.drive - external - 0.5 * potential)).sum(-1)
        electron = geometry.sum_over_atoms(cost)
        energy = local.energies.contributions.sum(-1) + electrostatic + in_field + electron
        total = geometry.sum_over_atoms(density[:, 0])
        if charge is not None:
            energy = energy + solution.fermi_level * (total - charge)
        at_atoms = None
        if "electrostatic_potentials" in wanted:
            at_atoms = self.potentials_at_atoms(
                local.plan, density, geometry, local.external_field
            )
        return Observables(
            energy=energy,
            node_energy=local.energies.node_energy,
            contributions=local.energies.contributions,
            dipole=dipole,
            density=density,
            fermi_level=solution.fermi_level,
            total_charge=total,
            electrostatic_energy=electrostatic,
            electron_energy=electron,
            field_energy=in_field,
            electrostatic_features=potential,
            electrostatic_potentials=at_atoms,
            field_independent_density=torch.zeros_like(density),
            scf=solution.scf,
            problem=problem if "problem" in wanted else None,
            hold_density=solution.hold_density,
        )


def _summed(readouts: nn.ModuleList, layers: list[Tensor]) -> Tensor:
    values = [read(feats) for read, feats in zip(readouts, layers, strict=True)]
    return torch.stack(values).sum(0)


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))
