"""One pass over a data set without training: losses, errors, SCF statistics, parity data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.metrics.errors import ErrorAccumulator, ErrorStatistics, Quantity
from fpmace.metrics.parity import ParityData
from fpmace.metrics.scf_summary import ScfSummary, WorstLoops
from fpmace.observables.types import Observables
from fpmace.scf.diagnostics import DiagnosticsSummary
from fpmace.training.losses import LossSum

Predict = Callable[..., Observables]
"""``predict(model, batch, mode=..., outputs=..., create_graph=...)``."""


@dataclass
class TermAverages:
    """Averages of weighted loss terms over batches, each weighted by its number of structures."""

    total: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    n_graphs: int = 0

    def add(self, loss: Tensor, terms: dict[str, Tensor], n_graphs: int) -> None:
        self.total += float(loss.detach()) * n_graphs
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + float(value) * n_graphs
        self.n_graphs += n_graphs

    @property
    def mean(self) -> float:
        return self.total / max(self.n_graphs, 1)

    def to_json(self) -> dict[str, Any]:
        scale = 1.0 / max(self.n_graphs, 1)
        return {
            "loss": self.mean,
            "terms": {name: value * scale for name, value in self.terms.items()},
        }


@dataclass
class Evaluation:
    """What a pass over a data set found.

    Attributes:
        losses: averages of the loss terms (zero if no losses were asked for).
        errors: errors by quantity.
        errors_by_group: group name -> errors by quantity.
        scf: convergence of the self-consistency loops.
        parity: quantity -> values, where asked for.
        diagnostics: eigenvalues of the maps, where the mode asks for them.
        worst: the structures whose loops were hardest.
    """

    losses: TermAverages
    errors: dict[str, ErrorStatistics]
    errors_by_group: dict[str, dict[str, ErrorStatistics]]
    scf: ScfSummary
    parity: dict[str, ParityData]
    diagnostics: DiagnosticsSummary
    worst: WorstLoops

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for the metrics file."""
        return {
            **self.losses.to_json(),
            "errors": {
                name: {"rmse": item.rmse, "mae": item.mae, "max": item.maximum}
                for name, item in self.errors.items()
            },
            "scf": self.scf.to_json(),
            "diagnostics": self.diagnostics.to_json(),
        }


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    predict: Predict,
    mode: Any,
    device: torch.device,
    quantities: Sequence[Quantity],
    losses: LossSum | None = None,
    groups: Sequence[str] | None = None,
    parity: Sequence[str] = (),
    parity_limit: int = 20000,
) -> Evaluation:
    """Predict every batch and gather losses and errors.

    Args:
        batches: in the order of the data set if ``groups`` is given.
        groups: name of each structure's group, such as its config_type.
        parity: names of quantities whose values are kept.
    """
    names = sorted(set(groups or ()))
    accumulator = ErrorAccumulator(quantities, n_groups=max(len(names), 1))
    averages, scf = TermAverages(), ScfSummary()
    diagnostics, worst = DiagnosticsSummary(), WorstLoops()
    kept = {item.name: ParityData(parity_limit) for item in quantities if item.name in parity}
    outputs = frozenset(item.output for item in quantities)
    if losses is not None:
        outputs |= losses.requires_outputs
    seen = 0
    for batch in batches:
        batch = batch.to(device)
        prediction = predict(model, batch, mode=mode, outputs=outputs, create_graph=False)
        group = None
        if groups is not None:
            chosen = groups[seen : seen + batch.n_graphs]
            group = torch.tensor([names.index(item) for item in chosen], device=device)
        seen += batch.n_graphs
        if losses is not None:
            averages.add(*losses(batch, prediction), batch.n_graphs)
        accumulator.update(batch, prediction, group)
        scf.add(prediction.scf)
        worst.add(prediction.scf, batch.index)
        if prediction.scf is not None:
            diagnostics.add(prediction.scf.diagnostics)
        for item in quantities:
            if item.name in kept:
                kept[item.name].add(item, batch, prediction)
    return Evaluation(
        losses=averages,
        errors=accumulator.statistics(),
        errors_by_group={name: accumulator.statistics(n) for n, name in enumerate(names)},
        scf=scf,
        parity=kept,
        diagnostics=diagnostics,
        worst=worst,
    )
