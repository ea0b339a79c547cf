"""What a model predicts for a batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace

from torch import Tensor

from fpmace.annotations import Values
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfResult


@dataclass(frozen=True, slots=True)
class Unknowns:
    """What a self-consistency solved for, [n_atoms, n], and the part that sees no density."""

    found: Tensor
    local: Tensor


@dataclass(slots=True)
class Observables:
    """Predictions for a batch; None where not asked for or not defined for the model.

    Attributes:
        energy: [n_graphs] eV.
        node_energy: [n_atoms] eV, the local part of the energy.
        forces: [n_atoms, 3] eV/Angstrom.
        stress: [n_graphs, 3, 3] eV/Angstrom^3, dE/dstrain / V, tension positive (ASE).
        virials: [n_graphs, 3, 3] eV, -V stress.
        dipole: [n_graphs, 3] e Angstrom (x, y, z), about the coordinate origin.
        density: [n_atoms, (l_max + 1)^2] e Angstrom^l.
        spin_density: [n_atoms, (l_max + 1)^2] e Angstrom^l, spin up minus spin down.
        fermi_level: [n_graphs] eV.
        total_charge: [n_graphs] e, sum over the atoms.
        electrostatic_energy: [n_graphs] eV.
        electron_energy: [n_graphs] eV, the field-energy readout.
        field_energy: [n_graphs] eV, external_field . dipole.
        contributions: [n_graphs, 1 + n_layers] eV, free atoms and the readout of each layer.
        electrostatic_features: [n_atoms, n_features] normalised field features.
        electrostatic_potentials: [n_atoms] V at the atoms, of the smeared density and the field.
        field_independent_density: [n_atoms, (l_max + 1)^2].
        polarizability: [n_graphs, 3, 3] e Angstrom^2/V, response of the dipole to the physical
            field E = -external_field.
        born_charges: [n_atoms, 3, 3] e, element (i, a, b) is d(dipole_b)/d(R_ia).
        scf: outcome of the self-consistency solve.
        problem: the fixed-point problem, for stability losses.
        unknowns: of the self-consistency, where they are not the density itself.
        hold_density: within this context the energy is differentiated at a held density; differs
            from nothing only for energies that are stationary in the density.
    """

    energy: Tensor
    node_energy: Tensor | None = None
    forces: Tensor | None = None
    stress: Tensor | None = None
    virials: Tensor | None = None
    dipole: Tensor | None = None
    density: Tensor | None = None
    spin_density: Tensor | None = None
    fermi_level: Tensor | None = None
    total_charge: Tensor | None = None
    electrostatic_energy: Tensor | None = None
    electron_energy: Tensor | None = None
    field_energy: Tensor | None = None
    contributions: Tensor | None = None
    electrostatic_features: Tensor | None = None
    electrostatic_potentials: Tensor | None = None
    field_independent_density: Tensor | None = None
    polarizability: Tensor | None = None
    born_charges: Tensor | None = None
    scf: ScfResult | None = None
    problem: FixedPointProblem | None = None
    unknowns: Unknowns | None = None
    hold_density: Callable[[], AbstractContextManager[None]] = field(
        default=nullcontext, repr=False, compare=False
    )

    def tensors(self) -> dict[str, Tensor]:
        """The predictions that are there, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def select(self, keep: Tensor, batch: Tensor) -> Observables:
        """The predictions of the structures where ``keep`` [n_graphs] bool is true.

        ``scf`` and ``problem`` stay those of the whole batch.

        Args:
            batch: [n_atoms] int64, structure of each atom.
        """
        atoms = keep[batch]
        parts: Values = {
            name: value[keep if len(value) == len(keep) else atoms]
            for name, value in self.tensors().items()
        }
        return replace(self, **parts)


OUTPUTS = frozenset(item.name for item in fields(Observables)) - {"hold_density", "unknowns"}
"""Everything that any model can be asked for."""
