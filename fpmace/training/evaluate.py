"""One pass over a data set without training: losses, errors, SCF statistics, parity data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fpmace.annotations import Values
from fpmace.data.batch import Batch
from fpmace.density_modes.base import DensityMode
from fpmace.distributed.process import ALONE, Process
from fpmace.metrics.averages import Average, detached
from fpmace.metrics.errors import ErrorAccumulator, ErrorStatistics, Quantity
from fpmace.metrics.parity import ParityData, free_atom_energies
from fpmace.metrics.response_check import ResponseCheck
from fpmace.metrics.scf_summary import ScfSummary, WorstLoops
from fpmace.observables.types import Observables
from fpmace.scf.diagnostics import DiagnosticsSummary
from fpmace.training.losses import LossSum

OF_THE_WHOLE = frozenset({"scf", "problem"})
"""Outputs that cannot be cut to a part of the batch."""

Predict = Callable[..., Observables]
"""``predict(model, batch, mode=..., outputs=..., create_graph=...)``."""


@dataclass
class TermAverages:
    """Sums and counts of loss terms over batches; parts of a data set add up by :meth:`merge`.

    Attributes:
        losses: the terms and their weights.
        averages: sum and count of each term so far, without its weight.
        n_graphs: structures seen; ``n_used`` of them in the sums.
    """

    losses: LossSum
    averages: dict[str, Average] = field(default_factory=dict)
    n_graphs: int = 0
    n_used: int = 0

    def add(self, averages: Mapping[str, Average], n_graphs: int, n_used: int) -> None:
        """Add the (detached) terms of a batch of ``n_graphs`` structures."""
        for name, value in averages.items():
            value = Average(value.total.double(), value.count)
            self.averages[name] = self.averages[name] + value if name in self.averages else value
        self.n_graphs += n_graphs
        self.n_used += n_used

    def merge(self, other: TermAverages) -> None:
        """Add what another process, or another part of the data, has gathered."""
        self.add(other.averages, other.n_graphs, other.n_used)

    @property
    def terms(self) -> dict[str, float]:
        """The weighted mean of each term; NaN where nothing was used."""
        if not self.averages:
            return {term.name: math.nan for term in self.losses.terms}
        return {name: float(value) for name, value in self.losses.weighted(self.averages).items()}

    @property
    def mean(self) -> float:
        """The loss: sum of the weighted means."""
        return sum(self.terms.values())

    def to_json(self) -> Values:
        """Loss and terms for the metrics file."""
        terms = self.terms
        return {"loss": sum(terms.values()), "terms": terms}


@dataclass
class Evaluation:
    """What a pass over a data set found.

    Attributes:
        losses: averages of the loss terms; None if no losses were asked for.
        accumulator: sums of errors, by group.
        groups: names of the groups; with several heads, each stands there once for each head.
        heads: names of the heads, where there are several.
        losses_by_head: averages of the loss terms of each head.
        scf: convergence of the self-consistency loops.
        parity: quantity -> values, where asked for.
        diagnostics: eigenvalues of the maps, where the mode asks for them.
        worst: the structures whose loops were hardest.
        response: the response of a few structures, where it was looked at.
        n_graphs: structures seen.
    """

    losses: TermAverages | None
    accumulator: ErrorAccumulator
    groups: list[str] = field(default_factory=list)
    heads: tuple[str, ...] = ()
    losses_by_head: dict[str, TermAverages] = field(default_factory=dict)
    scf: ScfSummary = field(default_factory=ScfSummary)
    parity: dict[str, ParityData] = field(default_factory=dict)
    diagnostics: DiagnosticsSummary = field(default_factory=DiagnosticsSummary)
    worst: WorstLoops = field(default_factory=WorstLoops)
    response: ResponseCheck | None = None
    n_graphs: int = 0

    @property
    def loss(self) -> float:
        """The mean loss; 0 if no losses were asked for."""
        return 0.0 if self.losses is None else self.losses.mean

    @property
    def errors(self) -> dict[str, ErrorStatistics]:
        """Errors by quantity."""
        return self.accumulator.statistics()

    @property
    def errors_by_group(self) -> dict[str, dict[str, ErrorStatistics]]:
        """Group name -> errors by quantity."""
        found = {name: self.accumulator.statistics(n) for n, name in enumerate(self.groups)}
        return {name: item for name, item in found.items() if item}

    @property
    def errors_by_head(self) -> dict[str, dict[str, ErrorStatistics]]:
        """Head -> errors by quantity, where there are several heads."""
        found: dict[str, dict[str, ErrorStatistics]] = {}
        for place, name in enumerate(self.heads):
            n_types = len(self.groups) // len(self.heads)
            mine = self.accumulator.statistics(range(place * n_types, (place + 1) * n_types))
            found |= {name: mine} if mine else {}
        return found

    def merge(self, other: Evaluation) -> None:
        """Add a pass over other structures of the same data set."""
        if self.losses is not None and other.losses is not None:
            self.losses.merge(other.losses)
        for name, averages in other.losses_by_head.items():
            self.losses_by_head[name].merge(averages)
        self.n_graphs += other.n_graphs
        self.accumulator.merge(other.accumulator)
        self.scf.merge(other.scf)
        self.diagnostics.merge(other.diagnostics)
        self.worst.merge(other.worst)
        for name, values in other.parity.items():
            self.parity[name].merge(values)

    def to_json(self) -> Values:
        """Plain numbers for the metrics file."""
        return {
            **({} if self.losses is None else self.losses.to_json()),
            "errors": _errors(self.errors),
            **({"heads": self._heads()} if self.heads else {}),
            **({} if self.response is None else {"response": self.response.to_json()}),
            "scf": self.scf.to_json(),
            "diagnostics": self.diagnostics.to_json(),
        }

    def _heads(self) -> Values:
        """Losses and errors of each head."""
        found = {name: {"errors": _errors(item)} for name, item in self.errors_by_head.items()}
        for name, averages in self.losses_by_head.items():
            if averages.n_graphs:
                found.setdefault(name, {}).update(averages.to_json())
        return found


def _errors(statistics: Mapping[str, ErrorStatistics]) -> Values:
    return {
        name: {"rmse": item.rmse, "mae": item.mae, "max": item.maximum}
        for name, item in statistics.items()
    }


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    predict: Predict,
    mode: DensityMode | None,
    device: torch.device,
    quantities: Sequence[Quantity],
    losses: LossSum | None = None,
    groups: Sequence[str] | None = None,
    group_names: Iterable[str] = (),
    parity: Sequence[str] = (),
    parity_limit: int = 20000,
    process: Process = ALONE,
) -> Evaluation:
    """Predict every batch and gather losses and errors, in all processes.

    Args:
        batches: those of this process.
        groups: name of each structure's group, such as its config_type, in the order of
            ``batches``; a model of several heads has each group once for each head.
        group_names: those of all processes; by default those of ``groups``.
        parity: names of quantities whose values are kept.
    """
    types = sorted({*(groups or ()), *group_names}) or [""]
    heads: tuple[str, ...] = getattr(model, "heads", ())
    heads = heads if len(heads) > 1 else ()
    names = [f"{head}, {name}".removesuffix(", ") for head in heads for name in types] or types
    atoms = free_atom_energies(model)
    limit = parity_limit // process.world_size
    kept = {i.name: ParityData(limit, atoms) for i in quantities if i.name in parity}
    accumulator = ErrorAccumulator(quantities, n_groups=len(names))
    found = Evaluation(
        None if losses is None else TermAverages(losses),
        accumulator,
        names if groups or group_names or heads else [],
        heads,
        parity=kept,
    )
    if losses is not None and not losses.requires_outputs & OF_THE_WHOLE:
        found.losses_by_head = {name: TermAverages(losses) for name in heads}
    outputs = frozenset(item.output for item in quantities)
    if losses is not None:
        outputs |= losses.requires_outputs
    seen = 0
    for batch in batches:
        batch = batch.to(device)
        prediction = predict(model, batch, mode=mode, outputs=outputs, create_graph=False)
        chosen = [""] * batch.n_graphs if groups is None else groups[seen : seen + batch.n_graphs]
        group = torch.tensor([types.index(item) for item in chosen], device=device)
        if heads:
            group = group + len(types) * batch.head
        seen += batch.n_graphs
        _add(found, batch, prediction, group, quantities)
    return found if process.alone else _gathered(found, quantities, process)


def _gathered(found: Evaluation, quantities: Sequence[Quantity], process: Process) -> Evaluation:
    """What all processes found, the same bits in each of them."""
    losses = found.losses
    plain = replace(
        found,
        losses=None if losses is None else replace(losses, losses=LossSum(())),
        losses_by_head={
            n: replace(i, losses=LossSum(())) for n, i in found.losses_by_head.items()
        },
        accumulator=None,  # type: ignore[arg-type]
    )
    n_groups = max(len(found.groups), 1)
    total: Evaluation | None = None
    for part, errors in process.gather((plain, found.accumulator.state_dict())):
        accumulator = ErrorAccumulator(quantities, n_groups=n_groups)
        accumulator.load_state_dict(errors)
        if part.losses is not None and losses is not None:
            for averages in (part.losses, *part.losses_by_head.values()):
                averages.losses = losses.losses
        for values in part.parity.values():
            values.limit *= process.world_size
        part.accumulator = accumulator
        if total is None:
            total = part
        else:
            total.merge(part)
    assert total is not None
    return total


def _add(
    found: Evaluation,
    batch: Batch,
    prediction: Observables,
    group: Tensor,
    quantities: Sequence[Quantity],
) -> None:
    if found.losses is not None:
        averages = detached(found.losses.losses.averages(batch, prediction))
        found.losses.add(averages, batch.n_graphs, batch.n_graphs)
        _add_losses_by_head(found, found.losses.losses, batch, prediction)
    found.n_graphs += batch.n_graphs
    found.accumulator.update(batch, prediction, group)
    found.scf.add(prediction.scf)
    found.worst.add(prediction.scf, batch.index)
    if prediction.scf is not None:
        found.diagnostics.add(prediction.scf.diagnostics)
    for item in quantities:
        if item.name in found.parity:
            found.parity[item.name].add(item, batch, prediction, group)


def _add_losses_by_head(
    found: Evaluation, losses: LossSum, batch: Batch, prediction: Observables
) -> None:
    for place, averages in enumerate(found.losses_by_head.values()):
        mine = batch.head == place
        part = batch.select(mine)
        if part.n_graphs:
            terms = losses.averages(part, prediction.select(mine, batch.batch))
            averages.add(detached(terms), part.n_graphs, part.n_graphs)
