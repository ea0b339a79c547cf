"""What an evaluation gathers beside the predictions: errors, convergence, values for plots."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fpmace.annotations import Values
from fpmace.data.batch import Batch
from fpmace.metrics.errors import ErrorAccumulator, Quantity
from fpmace.metrics.parity import ParityData
from fpmace.metrics.scf_summary import ScfSummary
from fpmace.observables.types import Observables

SHOWN_FAILURES = 20
_PARITY = ("reference", "predicted", "groups")
_MOST_VALUES = 20000


@dataclass(frozen=True)
class Measured:
    """What is measured: quantities, groups of configurations, and whether values are kept."""

    quantities: Sequence[Quantity]
    n_groups: int
    free_atoms: Sequence[Mapping[int, float]]
    plot: bool
    device: torch.device


class Findings:
    """Sums over configurations; parts of a file add up by :meth:`merge`."""

    def __init__(self, measured: Measured) -> None:
        self.measured = measured
        self.accumulator = ErrorAccumulator(measured.quantities, n_groups=measured.n_groups)
        self.scf = ScfSummary()
        self.unconverged: list[int] = []
        kept = measured.quantities if measured.plot else ()
        self.parity = {i.name: ParityData(_MOST_VALUES, measured.free_atoms) for i in kept}

    def add(self, batch: Batch, observables: Observables, group: Tensor) -> None:
        """Add a batch; ``group`` [n_graphs] int64."""
        self.accumulator.update(batch, observables, group)
        for item in self.measured.quantities:
            if item.name in self.parity:
                self.parity[item.name].add(item, batch, observables, group)
        self.scf.add(observables.scf)
        if observables.scf is not None:
            failed = batch.index[~observables.scf.converged].tolist()
            self.unconverged = [*self.unconverged, *failed][:SHOWN_FAILURES]

    def merge(self, state: Values) -> None:
        """Add what another process found, from its :meth:`state`."""
        other = Findings(self.measured)
        other.restore(state)
        self.accumulator.merge(other.accumulator)
        self.scf.merge(other.scf)
        self.unconverged = sorted([*self.unconverged, *other.unconverged])[:SHOWN_FAILURES]
        for name, values in other.parity.items():
            self.parity[name].merge(values)

    def state(self) -> Values:
        """Plain data to go on from."""
        return {
            "errors": self.accumulator.state_dict(),
            "scf": dataclasses.asdict(self.scf),
            "unconverged": self.unconverged,
            "parity": {
                name: {part: getattr(item, part) for part in _PARITY}
                for name, item in self.parity.items()
            },
        }

    def restore(self, state: Values) -> None:
        """Go on from a state."""
        self.accumulator.load_state_dict(state["errors"], self.measured.device)
        self.scf = ScfSummary(**state["scf"])
        self.unconverged = list(state["unconverged"])
        for name, values in state["parity"].items():
            for part in _PARITY:
                setattr(self.parity[name], part, list(values[part]))
            self.parity[name].count = sum(len(item) for item in values["reference"])
