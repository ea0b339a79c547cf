"""One training step up to the gradient: predict, compare, differentiate, check, clip."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.distributed.process import ALONE, Process
from fpmace.errors import TrainingError
from fpmace.metrics.averages import Average, detached
from fpmace.observables.types import Observables
from fpmace.scf.state import ScfResult
from fpmace.training.counts import ExpectedCounts
from fpmace.training.ema import trainable
from fpmace.training.evaluate import Predict
from fpmace.training.losses.base import sum_tensors
from fpmace.training.stages import Stage
from fpmace.training.unconverged import usable_part

logger = logging.getLogger(__name__)

_MOST_PASSES = 4


@dataclass(frozen=True)
class StepResult:
    """What a step found, in all processes.

    Attributes:
        loss: detached; NaN where no structure could be used.
        averages: detached terms by name, without their weights; none where nothing was used.
        n_graphs: structures of the step.
        n_used: those that the gradient comes from; 0: there is no gradient.
        scf: how the self-consistency loops went, for each batch of this process.
    """

    loss: Tensor
    averages: dict[str, Average]
    n_graphs: int
    n_used: int
    scf: tuple[ScfResult | None, ...]


@dataclass(frozen=True)
class _Part:
    """A batch of a step: its terms (none where nothing is usable), and what they come from."""

    batch: Batch
    averages: dict[str, Average]
    n_used: int
    n_used_atoms: int
    scf: ScfResult | None


@dataclass(frozen=True)
class _Total:
    """The same summed over the batches of all processes."""

    averages: dict[str, Average]
    n_graphs: int
    n_used: int
    n_used_atoms: int

    @property
    def counts(self) -> dict[str, int]:
        return {name: item.count for name, item in self.averages.items()}


class GradientStep:
    """Leaves the (clipped) gradient of the stage's loss in the parameters.

    The loss is the mean over all structures of the step that the mode can use: over the batches
    that a process accumulates, and over all processes. Each term is a sum over a count, and the
    gradient of a batch can only be formed once the counts of the whole step are known: for the
    last batch of each process they are exchanged before its backward pass; for those before, they
    are expected (:class:`ExpectedCounts`), and the step is repeated with the right ones where that
    was wrong. The gradients are summed over the processes in one message.

    Args:
        clip_grad: largest norm of the gradient; None: no clipping.
        accumulate: the most batches of a step that a process has.
    """

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        *,
        predict: Predict,
        clip_grad: float | None,
        accumulate: int = 1,
        process: Process = ALONE,
    ) -> None:
        self.model, self.stage, self.predict = model, stage, predict
        self.limit = math.inf if clip_grad is None else clip_grad
        self.accumulate, self.process = accumulate, process
        self._expected = ExpectedCounts()

    def __call__(self, parts: Sequence[Batch], *, place: str, seed: int = 0) -> StepResult:
        """Run a step.

        Args:
            parts: the batches of this process; none: it adds nothing.
            place: where training stands, for messages.
            seed: of the random numbers that modes and losses draw.

        Raises:
            TrainingError: if loss or gradient is not finite; names the configurations.
        """
        expected = self._expect(parts)
        for _ in range(_MOST_PASSES):
            found, total = self._pass(parts, expected, place, seed)
            scf = tuple(part.scf for part in found)
            if total.n_used == 0:
                nan = torch.tensor(math.nan)
                return StepResult(nan, {}, total.n_graphs, 0, scf)
            loss = self._loss(found, total, place)
            if self.accumulate == 1 or expected == total.counts:
                break
            expected = total.counts
        else:
            raise TrainingError(
                f"the structures that reach self-consistency in {place} differ from one pass over "
                "them to the next; raise scf.num_scf_steps or set accumulate to 1"
            )
        self._learn(total)
        if found:
            self._backward(found[-1], total.counts, place)
        parameters = trainable(self.model)
        self.process.sum_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.limit)
        if not math.isfinite(float(norm)):
            raise self._non_finite("gradient", place, found, [])
        return StepResult(loss, total.averages, total.n_graphs, total.n_used, scf)

    def _pass(
        self, parts: Sequence[Batch], expected: dict[str, int] | None, place: str, seed: int
    ) -> tuple[list[_Part], _Total]:
        """Predict all batches; gradients of all but the last, by the expected counts."""
        self.model.zero_grad(set_to_none=True)
        found: list[_Part] = []
        for number, batch in enumerate(parts, start=1):
            torch.manual_seed(seed)
            part = self._predict(batch)
            if number < len(parts):
                self._backward(part, expected, place)
                part = replace(part, averages=detached(part.averages))
            found.append(part)
        return found, self._sum(found)

    def _predict(self, batch: Batch) -> _Part:
        losses, mode = self.stage.losses, self.stage.mode
        outputs = losses.requires_outputs

        def run(part: Batch) -> Observables:
            return self.predict(self.model, part, mode=mode, outputs=outputs, create_graph=True)

        whole = run(batch)
        used = usable_part(batch, whole, mode, outputs=outputs, again=run)
        if used is None:
            return _Part(batch, {}, 0, 0, whole.scf)
        rest, prediction = used
        averages = losses.averages(rest, prediction)
        return _Part(batch, averages, rest.n_graphs, rest.n_atoms, whole.scf)

    def _backward(self, part: _Part, counts: dict[str, int] | None, place: str) -> None:
        """Add the gradient of a batch to that of the step."""
        if not part.averages or counts is None or counts.keys() != part.averages.keys():
            return
        shares = {name: Average(item.total, counts[name]) for name, item in part.averages.items()}
        loss = sum_tensors(self.stage.losses.weighted(shares))
        if not loss.requires_grad:
            raise TrainingError(
                f"no parameter of the model has an influence on the loss in {place} "
                f"({', '.join(shares)}); give the stage another loss or mode, or let parameters "
                "train"
            )
        loss.backward()

    def _sum(self, found: Sequence[_Part]) -> _Total:
        """Add up the batches, and what the other processes have."""
        sums = [detached(part.averages) for part in found]
        sizes = [(part.batch.n_graphs, part.n_used, part.n_used_atoms) for part in found]
        if self.process.alone and len(found) == 1:
            return _Total(sums[0], *sizes[0])
        names = [term.name for term in self.stage.losses.terms]
        device = next(self.model.parameters()).device
        values = torch.zeros(3 + 2 * len(names), dtype=torch.float64, device=device)
        for item, size in zip(sums, sizes, strict=True):
            values[:3] += torch.tensor(size, device=device)
            for number, name in enumerate(names if item else ()):
                values[3 + 2 * number] += item[name].count
                values[4 + 2 * number] += item[name].total.double()
        n_graphs, n_used, n_used_atoms, *rest = self.process.sum(values).tolist()
        pairs = zip(names, rest[0::2], rest[1::2], strict=True)
        averages = {
            name: Average(torch.tensor(total, dtype=torch.float64), int(count))
            for name, count, total in pairs
        }
        return _Total(averages if n_used else {}, int(n_graphs), int(n_used), int(n_used_atoms))

    def _loss(self, found: Sequence[_Part], total: _Total, place: str) -> Tensor:
        """The loss of the step, which is finite."""
        terms = self.stage.losses.weighted(total.averages)
        loss = sum_tensors(terms)
        if not math.isfinite(float(loss)):
            raise self._non_finite("loss", place, found, _bad(terms))
        return loss

    def _expect(self, parts: Sequence[Batch]) -> dict[str, int] | None:
        if self.accumulate == 1:
            return None
        sizes = [sum(item.n_graphs for item in parts), sum(item.n_atoms for item in parts)]
        device = next(self.model.parameters()).device
        graphs, atoms = self.process.sum(torch.tensor(sizes, device=device)).tolist()
        return self._expected.of({"graphs": graphs, "atoms": atoms})

    def _learn(self, total: _Total) -> None:
        sizes = {"graphs": total.n_used, "atoms": total.n_used_atoms}
        self._expected.learn(total.counts, sizes)

    def _non_finite(
        self, what: str, place: str, found: Sequence[_Part], terms: Sequence[str]
    ) -> TrainingError:
        """The error that names the configurations; every process makes it at the same time."""
        lost = [part for part in found if _bad({n: a.mean for n, a in part.averages.items()})]
        own = [index for part in lost or found for index in part.batch.index.tolist()]
        told = self.process.gather((bool(lost), own))
        first = [index for bad, part in told if bad for index in part]
        indices = first or [index for _, part in told for index in part]
        return TrainingError(
            f"non-finite {what} in {place} (training configurations "
            f"{', '.join(map(str, indices))}){': ' if terms else ''}{', '.join(terms)}; "
            "lower lr, set clip_grad, or check these configurations"
        )


def _bad(terms: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in terms.items() if not math.isfinite(float(value.detach()))]


def step_line(result: StepResult, stage: Stage) -> str:
    """Loss and weighted terms as text."""
    terms = stage.losses.weighted(result.averages) if result.averages else {}
    shown = (f"{name} {float(value):.6g}" for name, value in terms.items())
    return f"loss {float(result.loss):.6g} = {' + '.join(shown)}"


def report_unreached(model: nn.Module) -> None:
    """Warn of parameters without a gradient: no loss of the stage depends on them."""
    idle = [
        name
        for name, item in model.named_parameters()
        if item.requires_grad and item.numel() > 0 and item.grad is None
    ]
    if idle:
        shown = ", ".join(idle[:8]) + (f" and {len(idle) - 8} more" if len(idle) > 8 else "")
        logger.warning("no loss of this stage reaches %d parameters: %s", len(idle), shown)
