"""Polarizability along the field from pairs whose members come in any batch, in any order."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.metrics.residuals import Residual, dipole
from fpmace.observables.types import Observables

_FIELD, _REFERENCE, _PREDICTED = slice(0, 3), slice(3, 6), slice(6, 9)
_WEIGHT, _GROUP, _RESOLUTION, _WIDTH = 9, 10, 11, 12


@dataclass
class PairSigns:
    """Polarizabilities along the field, from pairs without and with a field.

    Attributes:
        n_pairs: labelled pairs.
        n_wrong: pairs in which the model's dipole falls with the field and that of the label
            does not.
        labels, model: e Angstrom^2/V, sums over the pairs.
    """

    n_pairs: int = 0
    n_wrong: int = 0
    labels: float = 0.0
    model: float = 0.0

    def add(self, residual: Residual) -> None:
        """Add pairs [n_pairs, 1]."""
        counted = residual.mask
        label, model = residual.reference[counted], residual.predicted[counted]
        self.n_pairs += len(label)
        self.n_wrong += int(((model < 0) & (label > 0)).sum())
        self.labels += float(label.sum())
        self.model += float(model.sum())

    def merge(self, other: PairSigns) -> None:
        """Add those of another part of the data."""
        self.n_pairs += other.n_pairs
        self.n_wrong += other.n_wrong
        self.labels += other.labels
        self.model += other.model

    def to_json(self) -> dict[str, float]:
        """Plain numbers; means where there are pairs."""
        found: dict[str, float] = {"n_pairs": self.n_pairs, "n_wrong_sign": self.n_wrong}
        if self.n_pairs:
            found["labels"] = self.labels / self.n_pairs
            found["model"] = self.model / self.n_pairs
        return found

    def __str__(self) -> str:
        if not self.n_pairs:
            return "no pairs"
        return (
            f"along the field of {self.n_pairs} pairs {self.model / self.n_pairs:+.3f} e A^2/V "
            f"(labels {self.labels / self.n_pairs:+.3f}), wrong sign in {self.n_wrong}"
        )


class PairTracker:
    """Keeps the first member of each pair until others with the same ``pair_id`` come.

    A member is 12 numbers, so that memory grows with the number of pairs only.
    """

    def __init__(self) -> None:
        self._first: dict[int, Tensor] = {}
        self.signs = PairSigns()

    def update(self, batch: Batch, prediction: Observables, group: Tensor) -> Residual:
        """Polarizabilities along the field of the pairs that this batch completes, on the CPU.

        Args:
            group: [n_graphs] int64, group of each structure.

        Returns:
            Residual of [n_pairs, 1] e Angstrom^2/V with the groups of the second members as
            ``rows``: -(D_2 - D_1) . n / |F_2 - F_1|, n the direction of the change of the
            external field F; a prediction of the size of rounding is zero. It counts where all
            components of both dipoles are labelled.
        """
        numbers = batch.labels.get("pair_id")
        if numbers is None or not bool((numbers >= 0).any()):
            return _residual([])
        found = dipole(batch, prediction)
        eps = torch.finfo(found.predicted.dtype).eps
        size = found.predicted.detach().norm(dim=-1, keepdim=True)
        columns = [
            batch.external_field,
            found.reference,
            found.predicted.detach(),
            found.weight.amin(-1, keepdim=True),
            group.unsqueeze(-1),
            # Charges of some e at some Angstrom cancel in the dipole.
            16.0 * eps * (10.0 + size),
        ]
        members = torch.cat([column.double() for column in columns], dim=-1).cpu()
        completed = []
        for number, member in zip(numbers.tolist(), members.unbind(), strict=True):
            if number >= 0 and self._first.setdefault(number, member) is not member:
                completed.append(torch.stack([self._first[number], member]))
        return self._counted(completed)

    def merge(self, other: PairTracker) -> Residual:
        """Add the members of another part of the same data, and return the pairs completed."""
        self.signs.merge(other.signs)
        completed = []
        for number, member in other._first.items():
            if self._first.setdefault(number, member) is not member:
                completed.append(torch.stack([self._first[number], member]))
        return self._counted(completed)

    def state_dict(self) -> dict[str, Tensor]:
        """The members waiting for others and the counts, to go on from later."""
        members = {str(number): member for number, member in self._first.items()}
        counts = torch.tensor(astuple(self.signs), dtype=torch.float64)
        return {**members, "signs": counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from the state of an earlier tracker."""
        members = {name: value for name, value in state.items() if name != "signs"}
        self._first = {int(number): member for number, member in members.items()}
        if "signs" in state:
            n_pairs, n_wrong, labels, model = state["signs"].tolist()
            self.signs = PairSigns(int(n_pairs), int(n_wrong), labels, model)

    def _counted(self, completed: list[Tensor]) -> Residual:
        residual = _residual(completed)
        self.signs.add(residual)
        return residual


def pair_polarizability(batch: Batch, prediction: Observables) -> Residual:
    """The pairs whose members are all in the batch; see :meth:`PairTracker.update`."""
    return PairTracker().update(batch, prediction, torch.zeros_like(batch.ptr[1:]))


def _residual(completed: list[Tensor]) -> Residual:
    pairs = torch.stack(completed) if completed else torch.zeros(0, 2, _WIDTH).double()
    change = pairs[:, 1] - pairs[:, 0]
    size = change[:, _FIELD].norm(dim=-1, keepdim=True)
    differ = size.squeeze(-1) > 0
    pairs, change, size = pairs[differ], change[differ], size[differ]
    direction = change[:, _FIELD] / size.square()
    weight = torch.where(pairs[:, 0, _WEIGHT] > 0, pairs[:, 1, _WEIGHT], 0.0).unsqueeze(-1)
    reference, predicted = (
        -(change[:, part] * direction).sum(-1, keepdim=True) for part in (_REFERENCE, _PREDICTED)
    )
    least = pairs[..., _RESOLUTION].amax(-1, keepdim=True) / size
    predicted = torch.where(predicted.abs() > least, predicted, 0.0)
    return Residual(reference, predicted, weight, pairs[:, 1, _GROUP].long())
