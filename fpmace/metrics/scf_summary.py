"""How the self-consistency loops of many batches went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fpmace.annotations import Values
from fpmace.scf.state import ScfResult, ScfStatus


@dataclass
class WorstLoops:
    """The structures that gave the most trouble: failures first, then the most passes."""

    keep: int = 3
    entries: list[tuple[int, int, float, int]] = field(default_factory=list)

    def add(self, result: ScfResult | None, index: Tensor) -> None:
        """Add a batch; ``index`` [n_graphs] is where each structure stands in its file."""
        if result is None:
            return
        failed = (~result.converged).to(torch.int64).tolist()
        steps, change = result.n_steps.tolist(), result.density_change.detach().tolist()
        found = zip(failed, steps, change, index.tolist(), strict=True)
        self.entries = sorted([*self.entries, *found], reverse=True)[: self.keep]

    def merge(self, other: WorstLoops) -> None:
        """Add the structures of another part of the data."""
        self.entries = sorted([*self.entries, *other.entries], reverse=True)[: self.keep]

    def describe(self, path: str) -> str:
        """One line that names file and index."""
        parts = [
            f"configuration {index} ({'not converged, ' if failed else ''}{steps} steps, "
            f"density change {change:.1e})"
            for failed, steps, change, index in self.entries
        ]
        return f"hardest structures of {path}: {'; '.join(parts)}"


@dataclass
class ScfSummary:
    """Counts over structures; ``add`` each batch's result."""

    counts: dict[str, int] = field(default_factory=dict)
    total_steps: int = 0
    max_steps: int = 0
    max_charge_error: float = 0.0

    @property
    def n_graphs(self) -> int:
        return sum(self.counts.values())

    @property
    def n_converged(self) -> int:
        return self.counts.get(ScfStatus.CONVERGED.name.lower(), 0)

    @property
    def mean_steps(self) -> float:
        return self.total_steps / max(self.n_graphs, 1)

    def add(self, result: ScfResult | None) -> None:
        """Add the result of a batch; None (no loop was run) adds nothing."""
        if result is None:
            return
        for value, count in _counts(result.status):
            name = ScfStatus(value).name.lower()
            self.counts[name] = self.counts.get(name, 0) + count
        self.total_steps += int(result.n_steps.sum())
        self.max_steps = max(self.max_steps, int(result.n_steps.max()))
        self.max_charge_error = max(
            self.max_charge_error, float(result.charge_error.detach().abs().max())
        )

    def merge(self, other: ScfSummary) -> None:
        """Add the counts of other structures."""
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        self.total_steps += other.total_steps
        self.max_steps = max(self.max_steps, other.max_steps)
        self.max_charge_error = max(self.max_charge_error, other.max_charge_error)

    def to_json(self) -> Values | None:
        """Plain numbers for the metrics file; None if no loop was run."""
        if self.n_graphs == 0:
            return None
        return {
            **self.counts,
            "mean_n_steps": self.mean_steps,
            "max_n_steps": self.max_steps,
            "max_charge_error": self.max_charge_error,
        }

    def __str__(self) -> str:
        others = ", ".join(
            f"{count} {name}" for name, count in self.counts.items() if name != "converged"
        )
        return (
            f"SCF converged for {self.n_converged} of {self.n_graphs} structures"
            f"{f' ({others})' if others else ''}, {self.mean_steps:.1f} steps on average, "
            f"{self.max_steps} at most; largest error of the total charge "
            f"{self.max_charge_error:.1e} e"
        )


def merged(parts: Sequence[ScfSummary]) -> ScfSummary:
    """The counts of all parts."""
    total = ScfSummary()
    for part in parts:
        total.merge(part)
    return total


def _counts(status: Tensor) -> list[tuple[int, int]]:
    values, counts = torch.unique(status, return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))
