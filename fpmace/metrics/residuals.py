"""Differences between labels and predictions, with the weights that losses and metrics share.

A loss averages ``weight * f(predicted - reference)`` over all entries; a metric takes the entries
with a positive weight. Both read the residuals defined here, so both see the same configurations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.errors import TrainingError
from fpmace.metrics.averages import Average
from fpmace.observables.types import Observables


@dataclass(frozen=True, slots=True)
class Residual:
    """Reference and prediction of one quantity.

    Attributes:
        reference, predicted: [n, n_components].
        weight: [n, 1] or [n, n_components]; 0 where the label is absent.
        rows: [n] int64, group of each entry, where it is not that of a structure or its atoms.
    """

    reference: Tensor
    predicted: Tensor
    weight: Tensor
    rows: Tensor | None = None

    @property
    def difference(self) -> Tensor:
        """[n, n_components] predicted minus reference."""
        return self.predicted - self.reference

    def average(self, values: Tensor) -> Average:
        """Average over all entries of ``weight * values``; values [n, n_components]."""
        return Average.of(self.weight * values)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all entries of ``weight * values``; values [n, n_components]."""
        return self.average(values).mean

    @property
    def mask(self) -> Tensor:
        """[n, n_components] bool, the entries that carry a label and a weight."""
        return (self.weight > 0).expand_as(self.reference)

    def to(self, device: torch.device) -> Residual:
        """The same on a device; ``rows`` is left out."""
        return Residual(
            self.reference.to(device), self.predicted.to(device), self.weight.to(device)
        )

    def per_atom(self, n_atoms: Tensor) -> Residual:
        """The same, divided by the number of atoms, [n]."""
        scale = n_atoms.to(self.reference.dtype).unsqueeze(-1)
        return Residual(self.reference / scale, self.predicted / scale, self.weight)


def output(prediction: Observables, name: str) -> Tensor:
    """The predicted tensor ``name``.

    Raises:
        TrainingError: if the prediction does not hold it.
    """
    value = getattr(prediction, name)
    if value is None:
        raise TrainingError(f"the model returned no '{name}', which a loss or metric needs")
    return value


def property_weight(batch: Batch, name: str) -> Tensor:
    """Configuration weight times property weight, [n_graphs] (``dipole``: [n_graphs, 3])."""
    weight = batch.weights.get(name)
    if weight is None:
        return torch.zeros_like(batch.weight)
    return batch.weight.view(-1, *[1] * (weight.dim() - 1)) * weight


def presence_weight(batch: Batch, name: str) -> Tensor:
    """[n_graphs] configuration weight where the property is given; its own weight is not used."""
    weight = batch.weights.get(name)
    return batch.weight if weight is None else batch.weight * (weight > 0)


def _label(batch: Batch, name: str, like: Tensor) -> Tensor:
    """The label, or zeros (of weight zero) where no structure of the batch carries it."""
    label = batch.labels.get(name)
    return torch.zeros_like(like) if label is None else label


def _per_graph(batch: Batch, name: str, predicted: Tensor) -> Residual:
    n = batch.n_graphs
    reference = _label(batch, name, predicted).reshape(n, -1)
    weight = property_weight(batch, name).reshape(n, -1)
    return Residual(reference, predicted.reshape(n, -1), weight)


def energy(batch: Batch, prediction: Observables) -> Residual:
    """Total energies, [n_graphs, 1] eV."""
    return _per_graph(batch, "energy", output(prediction, "energy"))


def energy_per_atom(batch: Batch, prediction: Observables) -> Residual:
    """Energies over the number of atoms, [n_graphs, 1] eV."""
    return energy(batch, prediction).per_atom(batch.atoms_per_graph)


def forces(batch: Batch, prediction: Observables) -> Residual:
    """[n_atoms, 3] eV/Angstrom."""
    predicted = output(prediction, "forces")
    weight = property_weight(batch, "forces")[batch.batch].unsqueeze(-1)
    return Residual(_label(batch, "forces", predicted), predicted, weight)


def stress(batch: Batch, prediction: Observables) -> Residual:
    """[n_graphs, 9] eV/Angstrom^3."""
    return _per_graph(batch, "stress", output(prediction, "stress"))


def virials(batch: Batch, prediction: Observables) -> Residual:
    """[n_graphs, 9] eV."""
    return _per_graph(batch, "virials", output(prediction, "virials"))


def virials_per_atom(batch: Batch, prediction: Observables) -> Residual:
    """[n_graphs, 9] eV."""
    return virials(batch, prediction).per_atom(batch.atoms_per_graph)


def atomic_multipoles(batch: Batch, prediction: Observables) -> Residual:
    """[n_atoms, n_lm] e Angstrom^l, the degrees that label and model have in common."""
    predicted = output(prediction, "density")
    reference = _label(batch, "atomic_multipoles", predicted)
    n_lm = min(predicted.shape[1], reference.shape[1])
    weight = property_weight(batch, "atomic_multipoles")[batch.batch].unsqueeze(-1)
    return Residual(reference[:, :n_lm], predicted[:, :n_lm], weight)


def charges(batch: Batch, prediction: Observables) -> Residual:
    """[n_atoms, 1] e, the l = 0 part of the density against the labelled charges."""
    return _monopoles(batch, "charges", output(prediction, "density"))


def spins(batch: Batch, prediction: Observables) -> Residual:
    """[n_atoms, 1], the l = 0 part of the spin density against the labelled populations."""
    return _monopoles(batch, "spins", output(prediction, "spin_density"))


def _monopoles(batch: Batch, name: str, density: Tensor) -> Residual:
    predicted = density[:, :1]
    reference = _label(batch, name, predicted).reshape(-1, 1)
    weight = property_weight(batch, name)[batch.batch].unsqueeze(-1)
    return Residual(reference, predicted, weight)


def atomic_dipoles(batch: Batch, prediction: Observables) -> Residual:
    """[n_atoms, 3] e Angstrom, the l = 1 part (no columns for a density of charges only)."""
    whole = atomic_multipoles(batch, prediction)
    return Residual(whole.reference[:, 1:4], whole.predicted[:, 1:4], whole.weight)


def total_charge(batch: Batch, prediction: Observables) -> Residual:
    """[n_graphs, 1] e; the sum of the atomic charges against the charge asked for."""
    predicted = output(prediction, "density")[:, 0]
    total = predicted.new_zeros(batch.n_graphs).index_add(0, batch.batch, predicted)
    weight = presence_weight(batch, "total_charge").unsqueeze(-1)
    return Residual(batch.total_charge.unsqueeze(-1), total.unsqueeze(-1), weight)


def total_charge_per_atom(batch: Batch, prediction: Observables) -> Residual:
    """[n_graphs, 1] e."""
    return total_charge(batch, prediction).per_atom(batch.atoms_per_graph)


def dipole(batch: Batch, prediction: Observables) -> Residual:
    """[n_graphs, 3] e Angstrom."""
    return _per_graph(batch, "dipole", output(prediction, "dipole"))


def dipole_per_atom(batch: Batch, prediction: Observables) -> Residual:
    """[n_graphs, 3] e Angstrom."""
    return dipole(batch, prediction).per_atom(batch.atoms_per_graph)


def polarizability(batch: Batch, prediction: Observables) -> Residual:
    """[n_graphs, 9] e Angstrom^2/V."""
    return _per_graph(batch, "polarizability", output(prediction, "polarizability"))


def polarizability_per_atom(batch: Batch, prediction: Observables) -> Residual:
    """[n_graphs, 9] e Angstrom^2/V."""
    return polarizability(batch, prediction).per_atom(batch.atoms_per_graph)


def relative_polarizability(batch: Batch, prediction: Observables) -> Residual:
    """[n_graphs, 9] in units of a third of the label's trace; a label of zero is left out."""
    found = polarizability(batch, prediction)
    size = found.reference.view(-1, 3, 3).diagonal(dim1=1, dim2=2).mean(-1, keepdim=True).abs()
    known = size > 0
    size = torch.where(known, size, 1.0)
    return Residual(found.reference / size, found.predicted / size, found.weight * known)


def fermi_level(batch: Batch, prediction: Observables) -> Residual:
    """[n_graphs, 1] eV."""
    predicted = output(prediction, "fermi_level").unsqueeze(-1)
    weight = presence_weight(batch, "fermi_level").unsqueeze(-1)
    return Residual(batch.labels["fermi_level"].unsqueeze(-1), predicted, weight)


def fermi_level_per_atom(batch: Batch, prediction: Observables) -> Residual:
    """[n_graphs, 1] eV."""
    return fermi_level(batch, prediction).per_atom(batch.atoms_per_graph)
