"""Residuals of what a structure answers to fields and displacements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.errors import TrainingError
from fpmace.metrics.residuals import Residual, output, property_weight
from fpmace.observables.types import Observables


def born_charges(batch: Batch, prediction: Observables) -> Residual:
    """[n_atoms, 9] e."""
    predicted = output(prediction, "born_charges").flatten(1)
    label = batch.labels.get("born_charges")
    reference = torch.zeros_like(predicted) if label is None else label.flatten(1)
    weight = property_weight(batch, "born_charges")[batch.batch].unsqueeze(-1)
    return Residual(reference, predicted, weight)


@dataclass(frozen=True, slots=True)
class FieldPairs:
    """The pairs of a batch: the same geometry in two fields.

    Attributes:
        first, second: [n_pairs] the graphs of each pair; three and more graphs with the same
            ``pair_id`` are all paired with the first of them.
        change: [n_pairs, 3] V/Angstrom, external field of the second minus that of the first.
    """

    first: Tensor
    second: Tensor
    change: Tensor

    @property
    def size(self) -> Tensor:
        """[n_pairs, 1] V/Angstrom, length of the change."""
        return self.change.norm(dim=-1, keepdim=True)


def field_pairs(batch: Batch) -> FieldPairs:
    """Find the pairs whose members are in the batch and differ in the field.

    Raises:
        TrainingError: two structures with the same ``pair_id`` differ in their atoms.
    """
    numbers = batch.labels.get("pair_id")
    if numbers is None:
        numbers = torch.full_like(batch.ptr[1:], -1)
    base = (numbers.unsqueeze(1) == numbers.unsqueeze(0)).to(torch.int8).argmax(dim=1)
    change = batch.external_field - batch.external_field[base]
    second = torch.nonzero((numbers >= 0) & (change != 0).any(dim=-1)).squeeze(-1)
    first, sizes = base[second], batch.atoms_per_graph
    wrong = torch.nonzero(sizes[first] != sizes[second]).squeeze(-1).tolist()
    if wrong:
        a, b = int(first[wrong[0]]), int(second[wrong[0]])
        raise TrainingError(
            f"configurations {int(batch.index[a])} and {int(batch.index[b])} have the same pair_id"
            f" {int(numbers[a])}, but {int(sizes[a])} and {int(sizes[b])} atoms; a pair is one "
            "geometry in two fields, so number pairs anew if files were joined"
        )
    return FieldPairs(first, second, change[second])


def pair_dipoles(batch: Batch, prediction: Observables, pairs: FieldPairs) -> Residual:
    """[n_pairs, 3] e Angstrom^2/V, change of the dipole over the size of the change of field."""
    predicted = output(prediction, "dipole")
    return _changes(batch, "dipole", predicted, pairs)


def pair_energies(batch: Batch, prediction: Observables, pairs: FieldPairs) -> Residual:
    """[n_pairs, 1] e Angstrom, change of the energy over the size of the change of field."""
    return _changes(batch, "energy", output(prediction, "energy").unsqueeze(-1), pairs)


def _changes(batch: Batch, name: str, predicted: Tensor, pairs: FieldPairs) -> Residual:
    label = batch.labels.get(name)
    reference = torch.zeros_like(predicted) if label is None else label.reshape(predicted.shape)
    weight = property_weight(batch, name).reshape(batch.n_graphs, -1)
    own = batch.weights.get("pair_id")
    carried = (weight[pairs.first] > 0) & (weight[pairs.second] > 0)
    counted = weight[pairs.second] * carried
    if own is not None:
        counted = counted * own[pairs.second].unsqueeze(-1)
    change = [
        (values[pairs.second] - values[pairs.first]) / pairs.size
        for values in (reference, predicted)
    ]
    return Residual(change[0], change[1], counted)
