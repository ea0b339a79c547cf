"""Which structures of a batch a training step uses, where self-consistency was not reached."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.density_modes.base import DensityMode
from fpmace.errors import TrainingError
from fpmace.observables.types import Observables
from fpmace.scf.state import ScfStatus
from fpmace.training.checkpoint import Progress
from fpmace.training.evaluate import OF_THE_WHOLE, Evaluation, TermAverages
from fpmace.training.stages import Stage

logger = logging.getLogger(__name__)


def usable_graphs(prediction: Observables, mode: DensityMode | None) -> Tensor | None:
    """[n_graphs] bool, the structures that count; None if the mode uses all of them.

    With ``on_unconverged: unroll`` those that the unrolled loop lost as well are left out. A
    truncated loop (``unroll_scf``) is meant to stop early: only what diverged is left out.
    """
    if mode is None or mode.scf is None or prediction.scf is None:
        return None
    if mode.scf.on_unconverged not in ("skip", "unroll"):
        return None
    if mode.solves:
        return prediction.scf.usable
    status = prediction.scf.status
    return (status != int(ScfStatus.NONFINITE)) & (status != int(ScfStatus.DIVERGED))


def usable_part(
    batch: Batch,
    prediction: Observables,
    mode: DensityMode | None,
    *,
    outputs: frozenset[str],
    again: Callable[[Batch], Observables],
) -> tuple[Batch, Observables] | None:
    """Batch and prediction without the structures that do not count; None if none is left.

    Predictions are cut where that is enough. Where what is left out is not finite (its zero
    gradient times infinity would be NaN), or a loss needs the map itself, the rest is predicted
    again.

    Args:
        outputs: what the losses read.
        again: predicts a batch as the first time.
    """
    usable = usable_graphs(prediction, mode)
    while usable is not None and not bool(usable.all()):
        if not bool(usable.any()):
            return None
        rest = batch.select(usable)
        if not outputs & OF_THE_WHOLE and _is_finite(prediction):
            return rest, prediction.select(usable, batch.batch)
        batch, prediction = rest, again(rest)
        usable = usable_graphs(prediction, mode)
    return batch, prediction


def report_skipped(epoch: int, number: int, batches: Sequence[Batch]) -> None:
    """Warn of a step that gave no gradient."""
    logger.warning(
        "epoch %d batch %d: no structure reached self-consistency (training configurations %s); "
        "the weights stay as they are",
        epoch,
        number,
        ", ".join(str(index) for batch in batches for index in batch.index.tolist()),
    )


_REMEDY = (
    "train a stage of mode direct before it, give the loop more scf.num_scf_steps or another "
    "scf.solver, add the loss response_bound, or set scf.on_unconverged to 'unroll'"
)


def check_epoch(stage: Stage, epoch: int, train: TermAverages) -> None:
    """Refuse to repeat an epoch that changed nothing.

    Raises:
        TrainingError: if no structure could be used.
    """
    if train.n_graphs > 0 and train.n_used == 0:
        raise TrainingError(
            f"stage {stage.index} '{stage.name}', epoch {epoch}: none of {train.n_graphs} "
            f"training structures reached self-consistency, so nothing was learned; {_REMEDY}"
        )


def check_stage(stage: Stage, progress: Progress) -> None:
    """Refuse a stage that left most of its data out.

    Raises:
        TrainingError: if fewer than half of the structures, over all epochs, were used.
    """
    if 2 * progress.n_used < progress.n_graphs:
        raise TrainingError(
            f"stage {stage.index} '{stage.name}': {progress.n_graphs - progress.n_used} of "
            f"{progress.n_graphs} training structures (over all epochs) did not reach "
            f"self-consistency and were left out (scf.on_unconverged); {_REMEDY}"
        )


def report_nonfinite(stage: Stage, progress: Progress, valid: Evaluation) -> None:
    """Warn of a validation loss that is not finite; it counts as no improvement.

    Raises:
        TrainingError: if the stage ends and none of its validations was finite.
    """
    terms = {} if valid.losses is None else valid.losses.terms
    lost = ", ".join(name for name, value in terms.items() if not math.isfinite(value))
    if not lost:
        return
    text = f"stage {stage.index} '{stage.name}', epoch {progress.epoch}: validation gives {lost}"
    if progress.epoch >= stage.end and progress.best_loss is None:
        raise TrainingError(
            f"{text} that is not finite, as did every validation of the stage, so it has no best "
            f"model; lower lr or {_REMEDY}"
        )
    logger.warning("%s that is not finite; it does not count as an improvement", text)


def _is_finite(prediction: Observables) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in prediction.tensors().values())
