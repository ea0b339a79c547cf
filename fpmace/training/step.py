"""One training step up to the gradient: predict, compare, differentiate, check, clip."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fpmace.data.batch import Batch
from fpmace.errors import TrainingError
from fpmace.scf.state import ScfResult
from fpmace.training.ema import trainable
from fpmace.training.evaluate import Predict
from fpmace.training.stages import Stage
from fpmace.training.unconverged import without_unconverged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """Detached loss, weighted terms by name, and how the self-consistency loop went."""

    loss: Tensor
    terms: dict[str, Tensor]
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

    Args:
        clip_grad: largest norm of the gradient; None: no clipping.
        place: where training stands, for messages.

    Raises:
        TrainingError: if loss or gradient is not finite; names the configurations.
    """
    prediction = predict(
        model,
        batch,
        mode=stage.mode,
        outputs=stage.losses.requires_outputs,
        create_graph=True,
    )
    loss, terms = stage.losses(without_unconverged(batch, prediction, stage.mode), prediction)
    if not math.isfinite(float(loss.detach())):
        raise _non_finite("loss", place, batch, terms)
    loss.backward()
    limit = math.inf if clip_grad is None else clip_grad
    norm = nn.utils.clip_grad_norm_(trainable(model), limit)
    if not math.isfinite(float(norm)):
        raise _non_finite("gradient", place, batch, terms)
    return StepResult(loss.detach(), terms, prediction.scf)


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
    bad = [name for name, value in terms.items() if not math.isfinite(float(value))]
    return TrainingError(
        f"non-finite {what} in {place} (training configurations "
        f"{', '.join(map(str, batch.index.tolist()))}){': ' + ', '.join(bad) if bad else ''}; "
        "lower lr, set clip_grad, or check these configurations"
    )
