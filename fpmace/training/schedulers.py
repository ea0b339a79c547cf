"""Learning-rate schedules within a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

Scheduler = ReduceLROnPlateau | ExponentialLR


@dataclass(frozen=True)
class RateOptions:
    """How learning rates fall.

    Attributes:
        scheduler: ``ReduceLROnPlateau`` lowers them when the validation loss stalls,
            ``ExponentialLR`` after every epoch.
        factor: factor applied on a plateau.
        patience: validations without improvement before that.
        gamma: factor per epoch of the exponential schedule.
    """

    scheduler: Literal["ReduceLROnPlateau", "ExponentialLR"] = "ReduceLROnPlateau"
    factor: float = 0.8
    patience: int = 50
    gamma: float = 0.9993


def make_scheduler(optimizer: torch.optim.Optimizer, options: RateOptions) -> Scheduler:
    """Build the schedule of a stage."""
    if options.scheduler == "ExponentialLR":
        return ExponentialLR(optimizer, gamma=options.gamma)
    return ReduceLROnPlateau(optimizer, factor=options.factor, patience=options.patience)


def after_epoch(scheduler: Scheduler) -> None:
    """Advance a schedule that counts epochs."""
    if isinstance(scheduler, ExponentialLR):
        scheduler.step()


def after_validation(scheduler: Scheduler, loss: float) -> None:
    """Advance a schedule that watches the validation loss."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(loss)
