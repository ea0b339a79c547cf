"""Errors of predictions, gathered batch by batch, and the tables they are shown in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from fpmace import registry
from fpmace.data import keys
from fpmace.data.batch import Batch
from fpmace.errors import ConfigError
from fpmace.metrics import residuals
from fpmace.metrics.pairs import PairSigns, PairTracker, pair_polarizability
from fpmace.metrics.residuals import Residual
from fpmace.metrics.response_residuals import born_charges
from fpmace.observables.types import Observables


@dataclass(frozen=True)
class Quantity:
    """Something whose error is measured: which label, which prediction, how compared.

    ``in_pairs``: it is the difference of two structures, which may stand in different batches.
    """

    name: str
    unit: str
    label: str
    output: str
    residual: Callable[[Batch, Observables], Residual]
    in_pairs: bool = False


QUANTITIES: dict[str, Quantity] = {
    item.name: item
    for item in (
        Quantity("energy", "eV", "energy", "energy", residuals.energy),
        Quantity("energy_per_atom", "eV/atom", "energy", "energy", residuals.energy_per_atom),
        Quantity("forces", "eV/A", "forces", "forces", residuals.forces),
        Quantity("stress", "eV/A^3", "stress", "stress", residuals.stress),
        Quantity("virials", "eV", "virials", "virials", residuals.virials),
        Quantity("virials_per_atom", "eV/atom", "virials", "virials", residuals.virials_per_atom),
        Quantity("charges", "e", "charges", "density", residuals.charges),
        Quantity("spins", "", "spins", "spin_density", residuals.spins),
        Quantity(
            "atomic_dipoles", "e A", "atomic_multipoles", "density", residuals.atomic_dipoles
        ),
        Quantity(
            "atomic_multipoles",
            "e A^l",
            "atomic_multipoles",
            "density",
            residuals.atomic_multipoles,
        ),
        Quantity("total_charge", "e", "total_charge", "density", residuals.total_charge),
        Quantity("dipole", "e A", "dipole", "dipole", residuals.dipole),
        Quantity("dipole_per_atom", "e A/atom", "dipole", "dipole", residuals.dipole_per_atom),
        Quantity(
            "polarizability",
            "e A^2/V",
            "polarizability",
            "polarizability",
            residuals.polarizability,
        ),
        Quantity(
            "polarizability_per_atom",
            "e A^2/V/atom",
            "polarizability",
            "polarizability",
            residuals.polarizability_per_atom,
        ),
        Quantity("born_charges", "e", "born_charges", "born_charges", born_charges),
        Quantity("pair_polarizability", "e A^2/V", "pair_id", "dipole", pair_polarizability, True),
        Quantity("fermi_level", "eV", "fermi_level", "fermi_level", residuals.fermi_level),
    )
}


def measurable(label_counts: dict[str, int], outputs: frozenset[str]) -> list[Quantity]:
    """The quantities that both the data and the predictions hold."""
    counts = keys.label_counts(label_counts)
    return [
        item
        for item in QUANTITIES.values()
        if counts.get(item.label, 0) > 0 and item.output in outputs
    ]


@dataclass(frozen=True)
class ErrorStatistics:
    """Errors of one quantity over its labelled entries.

    Attributes:
        count: number of entries (components counted singly).
        reference_rms: root mean square of the labels; ``relative_rmse`` is in percent of it.
    """

    count: int
    rmse: float
    mae: float
    maximum: float
    reference_rms: float

    @property
    def relative_rmse(self) -> float:
        return 100.0 * self.rmse / self.reference_rms if self.reference_rms > 0 else float("nan")


class ErrorAccumulator:
    """Sums of errors per quantity and group of configurations; memory does not grow with data.

    Args:
        quantities: what to measure.
        n_groups: number of groups, such as config_types.
    """

    def __init__(self, quantities: Iterable[Quantity], *, n_groups: int = 1) -> None:
        self._quantities = list(quantities)
        self._n_groups = n_groups
        self._sums: dict[str, Tensor] = {}
        self._largest: dict[str, Tensor] = {}
        self._pairs = {item.name: PairTracker() for item in self._quantities if item.in_pairs}

    def update(self, batch: Batch, prediction: Observables, group: Tensor | None = None) -> None:
        """Add the errors of a batch; ``group`` [n_graphs] int64, group 0 if not given."""
        if group is None:
            group = torch.zeros(batch.n_graphs, dtype=torch.int64, device=batch.batch.device)
        for item in self._quantities:
            if item.in_pairs:
                self._add_pairs(item.name, self._pairs[item.name].update(batch, prediction, group))
                continue
            residual = item.residual(batch, prediction)
            rows = group if len(residual.reference) == batch.n_graphs else group[batch.batch]
            self._add(item.name, residual, rows)

    def _add_pairs(self, name: str, residual: Residual) -> None:
        assert residual.rows is not None
        device = self._sums[name].device if name in self._sums else residual.rows.device
        self._add(name, residual.to(device), residual.rows.to(device))

    def _add(self, name: str, residual: Residual, rows: Tensor) -> None:
        mask = residual.mask
        error = torch.where(mask, residual.difference.detach(), 0.0).double()
        reference = torch.where(mask, residual.reference, 0.0).double()
        entries = torch.stack(
            [
                error.square().sum(-1),
                error.abs().sum(-1),
                reference.square().sum(-1),
                mask.sum(-1).double(),
            ],
            dim=-1,
        )
        largest = error.abs().amax(-1) if error.shape[-1] else error.new_zeros(len(error))
        if name not in self._sums:
            self._sums[name] = entries.new_zeros(self._n_groups, 4)
            self._largest[name] = entries.new_zeros(self._n_groups)
        self._sums[name] = self._sums[name].index_add(0, rows, entries)
        self._largest[name] = self._largest[name].scatter_reduce(0, rows, largest, "amax")

    @property
    def pair_signs(self) -> PairSigns:
        """What the pairs without and with a field say, where they are measured."""
        found = PairSigns()
        for item in self._pairs.values():
            found.merge(item.signs)
        return found

    def merge(self, other: ErrorAccumulator) -> None:
        """Add the sums of an accumulator for the same quantities and groups."""
        for name, sums in other._sums.items():
            largest = other._largest[name]
            if name in self._sums:
                sums = self._sums[name] + sums.to(self._sums[name].device)
                largest = torch.maximum(self._largest[name], largest.to(sums.device))
            self._sums[name], self._largest[name] = sums, largest
        for name, pairs in other._pairs.items():
            self._add_pairs(name, self._pairs[name].merge(pairs))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The sums so far, to go on from later."""
        return {
            "sums": {name: value.cpu() for name, value in self._sums.items()},
            "largest": {name: value.cpu() for name, value in self._largest.items()},
            **{f"pairs.{name}": item.state_dict() for name, item in self._pairs.items()},
        }

    def load_state_dict(
        self, state: dict[str, dict[str, Tensor]], device: torch.device | str = "cpu"
    ) -> None:
        """Go on from sums of an accumulator for the same quantities and groups."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._largest = {name: value.to(device) for name, value in state["largest"].items()}
        for name, item in self._pairs.items():
            item.load_state_dict(state.get(f"pairs.{name}", {}))

    def statistics(self, groups: int | Sequence[int] | None = None) -> dict[str, ErrorStatistics]:
        """Errors by quantity, of some groups or all; quantities without entries are left out."""
        found = {}
        for name, sums in self._sums.items():
            largest = self._largest[name]
            if groups is not None:
                chosen = [groups] if isinstance(groups, int) else list(groups)
                sums, largest = sums[chosen], largest[chosen]
            row = sums.sum(0)
            squares, absolute, reference, count = row.tolist()
            if count > 0:
                found[name] = ErrorStatistics(
                    count=int(count),
                    rmse=sqrt(squares / count),
                    mae=absolute / count,
                    maximum=float(largest.amax()),
                    reference_rms=sqrt(reference / count),
                )
        return found


@dataclass(frozen=True)
class Column:
    """One column of an error table.

    Attributes:
        title: heading with unit.
        quantity: name in ``QUANTITIES``.
        statistic: ``rmse``, ``mae``, ``maximum`` or ``relative_rmse``.
        scale: factor from the quantity's unit to the heading's.
    """

    title: str
    quantity: str
    statistic: str = "rmse"
    scale: float = 1.0

    @property
    def output(self) -> str:
        """The prediction that the column needs."""
        return QUANTITIES[self.quantity].output

    def value(self, statistics: dict[str, ErrorStatistics]) -> float | None:
        """The number shown, or None where nothing is labelled."""
        found = statistics.get(self.quantity)
        return None if found is None else self.scale * float(getattr(found, self.statistic))


class ErrorTable(ABC):
    """A named choice of columns; registered under the kind ``error_table``."""

    @abstractmethod
    def columns(self) -> Sequence[Column]:
        """The columns, left to right."""


registry.set_base("error_table", ErrorTable)


def check_error_table(
    table: ErrorTable, *, named: str, available_outputs: frozenset[str], where: str
) -> None:
    """Refuse a table that shows what the model does not predict.

    Raises:
        ConfigError: naming the column, the table and the tables that fit.
    """
    missing = [item for item in table.columns() if item.output not in available_outputs]
    if not missing:
        return
    fitting = [
        entry.name
        for entry in registry.describe("error_table")
        if not entry.options
        and all(
            item.output in available_outputs
            for item in registry.build("error_table", entry.name).columns()
        )
    ]
    raise ConfigError(
        f"table '{named}' shows '{missing[0].title}', which this model does not predict; "
        f"use one of {', '.join(fitting)}",
        where=where,
    )
