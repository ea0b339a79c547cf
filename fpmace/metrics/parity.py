"""Reference and predicted values kept for parity plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.metrics.errors import Quantity
from fpmace.models.heads import energies_by_head
from fpmace.observables.types import Observables


@dataclass
class ParityData:
    """Reference and predicted values of one quantity, up to a limit.

    Attributes:
        free_atoms: eV by atomic number, of each head; taken off energies per atom, whose
            differences between compositions would hide all else.
        groups: group of each value, such as the number of its config_type.
    """

    limit: int
    free_atoms: Sequence[Mapping[int, float]] = ()
    reference: list[Tensor] = field(default_factory=list)
    predicted: list[Tensor] = field(default_factory=list)
    groups: list[Tensor] = field(default_factory=list)
    count: int = 0

    def add(
        self,
        quantity: Quantity,
        batch: Batch,
        prediction: Observables,
        group: Tensor | None = None,
    ) -> None:
        """Add a batch; ``group`` [n_graphs] int64, group 0 if not given."""
        residual = quantity.residual(batch, prediction)
        reference, predicted = residual.reference, residual.predicted.detach()
        if quantity.name == "energy_per_atom" and self.free_atoms:
            shift = self._mean_free_atom(batch).unsqueeze(-1)
            reference, predicted = reference - shift, predicted - shift
        rows = torch.zeros_like(batch.ptr[1:]) if group is None else group
        if residual.rows is None and len(reference) != batch.n_graphs:
            rows = rows[batch.batch]
        mask, room = residual.mask, max(self.limit - self.count, 0)
        rows = rows.unsqueeze(-1).expand_as(mask) if residual.rows is None else 0 * mask.long()
        self.reference.append(reference[mask][:room].double().cpu())
        self.predicted.append(predicted[mask][:room].double().cpu())
        self.groups.append(rows[mask][:room].cpu())
        self.count += len(self.reference[-1])

    def merge(self, other: ParityData) -> None:
        """Add values of other structures, up to the limit."""
        room = max(self.limit - self.count, 0)
        for mine, theirs in (
            (self.reference, other.reference),
            (self.predicted, other.predicted),
            (self.groups, other.groups),
        ):
            mine.append(torch.cat(theirs)[:room] if theirs else torch.zeros(0))
        self.count += len(self.reference[-1])

    def _mean_free_atom(self, batch: Batch) -> Tensor:
        """[n_graphs] eV: energy per atom of the free atoms."""
        largest = max(max(table) for table in self.free_atoms)
        table = batch.positions.new_zeros(len(self.free_atoms), 1 + largest)
        for row, energies in enumerate(self.free_atoms):
            for number, energy in energies.items():
                table[row, number] = energy
        head = batch.head[batch.batch] if len(table) > 1 else torch.zeros_like(batch.batch)
        total = table.new_zeros(batch.n_graphs)
        total = total.index_add(0, batch.batch, table[head, batch.atomic_numbers])
        return total / batch.atoms_per_graph


def free_atom_energies(model: nn.Module) -> list[dict[int, float]]:
    """Energies of the free atoms of each head, eV by atomic number; empty where not known."""
    found = energies_by_head(getattr(model, "config", {}))
    return found if any(found) else []
