"""Squared-error losses of labelled quantities.

``w_g`` is the weight of the configuration, ``w^X_g`` that of its property X, ``N_g`` its number
of atoms; ``mean`` is the arithmetic mean over everything named, unlabelled entries included
(they have weight zero).
"""

from __future__ import annotations

from abc import abstractmethod

from fpmace.data.batch import Batch
from fpmace.metrics import residuals
from fpmace.metrics.averages import Average
from fpmace.metrics.residuals import Residual
from fpmace.observables.types import Observables
from fpmace.registry import register_loss
from fpmace.training.losses.base import Loss


class SquaredError(Loss):
    """``mean(weight * difference^2)`` of one residual; a subclass names the residual."""

    @abstractmethod
    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        """What is squared."""

    def average(self, batch: Batch, prediction: Observables) -> Average:
        residual = self.residual(batch, prediction)
        return residual.average(residual.difference.square())


@register_loss("energy_per_atom")
class EnergyPerAtomLoss(SquaredError):
    """mean_g w_g w^E_g ((E_ref - E) / N_g)^2, eV^2."""

    requires_labels = ("energy",)
    requires_outputs = ("energy",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.energy_per_atom(batch, prediction)


@register_loss("forces")
class ForcesLoss(SquaredError):
    """Mean over atoms and components of w_g w^F_g (F_ref - F)^2, (eV/A)^2."""

    requires_labels = ("forces",)
    requires_outputs = ("forces",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.forces(batch, prediction)


@register_loss("stress")
class StressLoss(SquaredError):
    """Mean over graphs and nine components of w_g w^S_g (S_ref - S)^2, (eV/A^3)^2."""

    requires_labels = ("stress",)
    requires_outputs = ("stress",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.stress(batch, prediction)


@register_loss("virials")
class VirialsLoss(SquaredError):
    """Mean over graphs and nine components of w_g w^V_g ((V_ref - V) / N_g)^2, eV^2."""

    requires_labels = ("virials",)
    requires_outputs = ("virials",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.virials_per_atom(batch, prediction)


@register_loss("atomic_multipoles")
class AtomicMultipolesLoss(SquaredError):
    """Mean over atoms and components of w_g w^q_g (q_ref - q)^2, (e A^l)^2."""

    requires_labels = ("atomic_multipoles",)
    requires_outputs = ("density",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.atomic_multipoles(batch, prediction)


@register_loss("charges")
class ChargesLoss(SquaredError):
    """Mean over atoms of w_g w^c_g (q_ref - q)^2, e^2; dipoles and higher degrees stay free."""

    requires_labels = ("charges",)
    requires_outputs = ("density",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.charges(batch, prediction)


@register_loss("spins")
class SpinsLoss(SquaredError):
    """Mean over atoms of w_g w^s_g (s_ref - s)^2, spin populations up minus down."""

    requires_labels = ("spins",)
    requires_outputs = ("spin_density",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.spins(batch, prediction)


@register_loss("total_charge")
class TotalChargeLoss(SquaredError):
    """mean_g w_g (Q_ref - sum_i Q_i)^2, e^2."""

    requires_labels = ("total_charge",)
    requires_outputs = ("density",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.total_charge(batch, prediction)


@register_loss("total_charge_per_atom")
class TotalChargePerAtomLoss(SquaredError):
    """mean_g w_g ((Q_ref - sum_i Q_i) / N_g)^2, e^2."""

    requires_labels = ("total_charge",)
    requires_outputs = ("density",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.total_charge_per_atom(batch, prediction)


@register_loss("dipole")
class DipoleLoss(SquaredError):
    """Mean over graphs and components of w_g w^D_gc (D_ref - D)^2, (e A)^2."""

    requires_labels = ("dipole",)
    requires_outputs = ("dipole",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.dipole(batch, prediction)


@register_loss("dipole_per_atom")
class DipolePerAtomLoss(SquaredError):
    """Mean over graphs and components of w_g w^D_gc ((D_ref - D) / N_g)^2, (e A)^2."""

    requires_labels = ("dipole",)
    requires_outputs = ("dipole",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.dipole_per_atom(batch, prediction)


@register_loss("fermi_level")
class FermiLevelLoss(SquaredError):
    """mean_g w_g (mu_ref - mu)^2 over graphs with a reference Fermi level, eV^2."""

    requires_labels = ("fermi_level",)
    requires_outputs = ("fermi_level",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.fermi_level(batch, prediction)


@register_loss("fermi_level_per_atom")
class FermiLevelPerAtomLoss(SquaredError):
    """mean_g w_g ((mu_ref - mu) / N_g)^2 over graphs with a reference Fermi level, eV^2."""

    requires_labels = ("fermi_level",)
    requires_outputs = ("fermi_level",)

    def residual(self, batch: Batch, prediction: Observables) -> Residual:
        return residuals.fermi_level_per_atom(batch, prediction)
