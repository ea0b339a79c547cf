"""The files of a run, and what they say of model and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fpmace.annotations import Values
from fpmace.data.statistics import DatasetStatistics


@dataclass(frozen=True)
class RunPaths:
    """The files that a run writes."""

    folder: Path
    name: str

    def file(self, ending: str) -> Path:
        return self.folder / f"{self.name}{ending}"

    @property
    def model(self) -> Path:
        return self.file(".model")

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def describe(model: nn.Module, statistics: DatasetStatistics) -> str:
    """Size of the model and what it took from the data."""
    count = sum(item.numel() for item in model.parameters() if item.requires_grad)
    lines = [f"{type(model).__name__}, {count} trainable parameters"]
    each = {name: item.atomic_energies for name, item in (statistics.heads or {}).items()}
    for name, free in (each or {"": statistics.atomic_energies}).items():
        energies = ", ".join(f"{z}: {e:.6g}" for z, e in free.items())
        lines.append(f"  atomic energies / eV{f' of head {name}' if name else ''}: {energies}")
    lines.append(f"  neighbours per atom: {statistics.avg_num_neighbors:.2f}")
    norms = statistics.field_feature_norms
    if norms is not None:
        lines.append(f"  field feature norms: {', '.join(f'{value:.4g}' for value in norms)}")
    return "\n".join(lines)


def history(records: list[Values]) -> list[Values]:
    """One entry per stage: epochs, best validation loss and where it was."""
    stages: dict[int, Values] = {}
    for record in records:
        entry = stages.setdefault(
            record["stage"],
            {"name": record["stage_name"], "first_epoch": record["epoch"], "best_loss": None},
        )
        entry["last_epoch"] = record["epoch"]
        loss = None if record["valid"] is None else record["valid"]["loss"]
        if loss is not None and (entry["best_loss"] is None or loss < entry["best_loss"]):
            entry["best_loss"], entry["best_epoch"] = loss, record["epoch"]
    return list(stages.values())
