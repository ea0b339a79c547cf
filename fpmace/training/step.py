"""One training step up to the gradient: predict, compare, differentiate, check, clip."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.errors import TrainingError
from fpmace.metrics.averages import Average, detached
from fpmace.observables.types import Observables
from fpmace.scf.state import ScfResult
from fpmace.training.ema import trainable
from fpmace.training.evaluate import Predict
from fpmace.training.losses.base import sum_tensors
from fpmace.training.stages import Stage
from fpmace.training.unconverged import usable_part

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """What a step found.

    Attributes:
        loss: detached; NaN where no structure could be used.
        averages: detached terms by name, without their weights; none where nothing was used.
        n_used: structures that the gradient comes from; 0: there is no gradient.
        scf: how the self-consistency loop of the whole batch went.
    """

    loss: Tensor
    averages: dict[str, Average]
    n_used: int
    scf: ScfResult | None


def compute_gradient(
    model: nn.Module,
    batch: Batch,
    stage: Stage,
    *,
    predict: Predict,
    clip_grad: float | None,
    place: str,
) -> StepResult:
    """Leave the (clipped) gradient of the stage's loss in the parameters.

    The loss is the mean over the structures of the batch that the mode can use.

    Args:
        clip_grad: largest norm of the gradient; None: no clipping.
        place: where training stands, for messages.

    Raises:
        TrainingError: if loss or gradient is not finite; names the configurations.
    """
    losses, outputs = stage.losses, stage.losses.requires_outputs

    def run(part: Batch) -> Observables:
        return predict(model, part, mode=stage.mode, outputs=outputs, create_graph=True)

    whole = run(batch)
    used = usable_part(batch, whole, stage.mode, outputs=outputs, again=run)
    if used is None:
        return StepResult(batch.weight.new_tensor(math.nan), {}, 0, whole.scf)
    batch, prediction = used
    averages = losses.averages(batch, prediction)
    terms = losses.weighted(averages)
    loss = sum_tensors(terms)
    if not math.isfinite(float(loss.detach())):
        raise _non_finite("loss", place, batch, terms)
    if not loss.requires_grad:
        raise TrainingError(
            f"no parameter of the model has an influence on the loss in {place} "
            f"({', '.join(terms)}); give the stage another loss or mode, or let parameters train"
        )
    loss.backward()
    limit = math.inf if clip_grad is None else clip_grad
    norm = nn.utils.clip_grad_norm_(trainable(model), limit)
    if not math.isfinite(float(norm)):
        raise _non_finite("gradient", place, batch, terms)
    return StepResult(loss.detach(), detached(averages), batch.n_graphs, whole.scf)


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


def _non_finite(what: str, place: str, batch: Batch, terms: Mapping[str, Tensor]) -> TrainingError:
    bad = [name for name, value in terms.items() if not math.isfinite(float(value.detach()))]
    return TrainingError(
        f"non-finite {what} in {place} (training configurations "
        f"{', '.join(map(str, batch.index.tolist()))}){': ' + ', '.join(bad) if bad else ''}; "
        "lower lr, set clip_grad, or check these configurations"
    )
