"""Polarizability along the field from pairs whose members come in any batch, in any order."""

from __future__ import annotations

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.metrics.residuals import Residual, dipole
from fpmace.observables.types import Observables

_FIELD, _REFERENCE, _PREDICTED = slice(0, 3), slice(3, 6), slice(6, 9)
_WEIGHT, _GROUP, _WIDTH = 9, 10, 11


class PairTracker:
    """Keeps the first member of each pair until others with the same ``pair_id`` come.

    A member is 11 numbers, so that memory grows with the number of pairs only.
    """

    def __init__(self) -> None:
        self._first: dict[int, Tensor] = {}

    def update(self, batch: Batch, prediction: Observables, group: Tensor) -> Residual:
        """Polarizabilities along the field of the pairs that this batch completes, on the CPU.

        Args:
            group: [n_graphs] int64, group of each structure.

        Returns:
            Residual of [n_pairs, 1] e Angstrom^2/V with the groups of the second members as
            ``rows``: -(D_2 - D_1) . n / |F_2 - F_1|, n the direction of the change of the
            external field F. It counts where all components of both dipoles are labelled.
        """
        numbers = batch.labels.get("pair_id")
        if numbers is None or not bool((numbers >= 0).any()):
            return _residual([])
        found = dipole(batch, prediction)
        columns = [
            batch.external_field,
            found.reference,
            found.predicted.detach(),
            found.weight.amin(-1, keepdim=True),
            group.unsqueeze(-1),
        ]
        members = torch.cat([column.double() for column in columns], dim=-1).cpu()
        completed = []
        for number, member in zip(numbers.tolist(), members.unbind(), strict=True):
            if number >= 0 and self._first.setdefault(number, member) is not member:
                completed.append(torch.stack([self._first[number], member]))
        return _residual(completed)

    def merge(self, other: PairTracker) -> Residual:
        """Add the members of another part of the same data, and return the pairs completed."""
        completed = []
        for number, member in other._first.items():
            if self._first.setdefault(number, member) is not member:
                completed.append(torch.stack([self._first[number], member]))
        return _residual(completed)

    def state_dict(self) -> dict[str, Tensor]:
        """The members waiting for others, to go on from later."""
        return {str(number): member for number, member in self._first.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from the members of an earlier tracker."""
        self._first = {int(number): member for number, member in state.items()}


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
    return Residual(reference, predicted, weight, pairs[:, 1, _GROUP].long())
