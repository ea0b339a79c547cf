"""Learning-rate schedules within a stage."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Literal

import torch
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, ReduceLROnPlateau

Scheduler = ReduceLROnPlateau | ExponentialLR | LambdaLR


@dataclass(frozen=True)
class RateOptions:
    """How learning rates fall.

    Attributes:
        scheduler: ``ReduceLROnPlateau`` lowers them when the validation loss stalls,
            ``ExponentialLR`` after every epoch, ``CosineAnnealingLR`` too, along half a cosine
            that ends near zero with the stage.
        factor: factor applied on a plateau.
        patience: validations without improvement before that.
        gamma: factor per epoch of the exponential schedule.
    """

    scheduler: Literal["ReduceLROnPlateau", "ExponentialLR", "CosineAnnealingLR"] = (
        "ReduceLROnPlateau"
    )
    factor: float = 0.8
    patience: int = 50
    gamma: float = 0.9993


def make_scheduler(
    optimizer: torch.optim.Optimizer, options: RateOptions, n_epochs: int
) -> Scheduler:
    """Build the schedule of a stage of ``n_epochs``."""
    if options.scheduler == "CosineAnnealingLR":
        # A function of the epoch alone, so that a longer stage goes on from a checkpoint.
        return LambdaLR(optimizer, lambda epoch: 0.5 + 0.5 * cos(pi * min(epoch / n_epochs, 1.0)))
    if options.scheduler == "ExponentialLR":
        return ExponentialLR(optimizer, gamma=options.gamma)
    return ReduceLROnPlateau(optimizer, factor=options.factor, patience=options.patience)


def after_epoch(scheduler: Scheduler) -> None:
    """Advance a schedule that counts epochs."""
    if isinstance(scheduler, (ExponentialLR, LambdaLR)):
        scheduler.step()


def after_validation(scheduler: Scheduler, loss: float) -> None:
    """Advance a schedule that watches the validation loss."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(loss)
