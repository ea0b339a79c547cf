"""Losses on what a structure answers to fields and displacements.

All are matrix-free: derivatives of the dipole come from adjoint solves, those of the loss from
adjoint solves once more. They belong to modes that solve the self-consistency; ``field_pairs``
needs no derivative and goes with every mode.
"""

from __future__ import annotations

from fpmace.data.batch import Batch
from fpmace.errors import ConfigError
from fpmace.metrics import residuals, response_residuals
from fpmace.metrics.averages import Average
from fpmace.metrics.residuals import Residual
from fpmace.observables.types import Observables
from fpmace.registry import register_loss
from fpmace.training.losses.base import Loss
from fpmace.training.losses.standard import SquaredError


@register_loss("polarizability")
class PolarizabilityLoss(SquaredError):
    """Mean over graphs and nine components of w_g w^a_g ((a_ref - a) / N_g)^2, (e A^2/V)^2.

    Args:
        per_atom: False: the difference is not divided by the number of atoms N_g.
        relative: True: it is divided by a third of the trace of the label instead, so that
            structures that answer strongly do not outweigh all others; no unit.
    """

    requires_labels = ("polarizability",)
    requires_outputs = ("polarizability",)

    def __init__(self, *, per_atom: bool = True, relative: bool = False) -> None:
        self.per_atom, self.relative = per_atom, relative

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        if self.relative:
            return residuals.relative_polarizability(batch, prediction)
        if self.per_atom:
            return residuals.polarizability_per_atom(batch, prediction)
        return residuals.polarizability(batch, prediction)


@register_loss("born_charges")
class BornChargesLoss(SquaredError):
    """Mean over atoms and nine components of w_g w^Z_g (Z_ref - Z)^2, e^2."""

    requires_labels = ("born_charges",)
    requires_outputs = ("born_charges",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return response_residuals.born_charges(batch, prediction)


@register_loss("field_pairs")
class FieldPairsLoss(Loss):
    """Change of dipole and energy between two fields F at the same geometry, per size of change.

    ``sum_p w_p (dipole mean_c (d_ref - d)_pc^2 + energy (e_ref - e)_p^2) / N_p^2 / n_graphs``,
    d_p = (D_2 - D_1) / |F_2 - F_1| in e A^2/V, e_p = (E_2 - E_1) / |F_2 - F_1| in e A, N_p atoms;
    w_p is the weight of the second structure times ``config_pair_id_weight``. Batches are made so
    that structures with the same ``pair_id`` are in the same one.

    Args:
        dipole: share of the dipole.
        energy: share of the energy.
        per_atom: False: no division by N_p.
    """

    requires_labels = ("pair_id", "dipole", "energy")
    requires_outputs = ("energy", "dipole")

    def __init__(self, *, dipole: float = 1.0, energy: float = 1.0, per_atom: bool = True) -> None:
        if dipole < 0 or energy < 0 or dipole + energy == 0:
            raise ConfigError(
                "loss field_pairs: expected dipole >= 0 and energy >= 0, not both 0, "
                f"got {dipole!r}, {energy!r}"
            )
        self.dipole, self.energy, self.per_atom = dipole, energy, per_atom

    def average(self, batch: Batch, prediction: Observables) -> Average:
        pairs = response_residuals.field_pairs(batch)
        dipoles = response_residuals.pair_dipoles(batch, prediction, pairs)
        energies = response_residuals.pair_energies(batch, prediction, pairs)
        if self.per_atom:
            n_atoms = batch.atoms_per_graph[pairs.second]
            dipoles, energies = dipoles.per_atom(n_atoms), energies.per_atom(n_atoms)
        of_dipoles = (dipoles.weight * dipoles.difference.square()).mean(-1).sum()
        of_energies = (energies.weight * energies.difference.square()).sum()
        total = self.dipole * of_dipoles + self.energy * of_energies
        return Average(total, batch.n_graphs)
