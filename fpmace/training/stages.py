"""A stage of the schedule, ready to run: its losses, its training mode, its learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from fpmace.density_modes.base import DensityMode
from fpmace.errors import ConfigError
from fpmace.training.losses import LossSum


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        index: position in the schedule.
        start, end: first and last epoch.
        mode: how the density is found and differentiated; None for models without one.
        valid_mode: the same in validation.
        lr: learning rate of groups that ``group_lrs`` does not name.
        freeze: parts of the model that are not trained.
    """

    index: int
    name: str
    start: int
    end: int
    losses: LossSum
    mode: DensityMode | None
    valid_mode: DensityMode | None
    lr: float
    group_lrs: Mapping[str, float] = field(default_factory=dict)
    freeze: tuple[str, ...] = ()


def check_schedule(stages: Sequence[Stage]) -> None:
    """Refuse stages that overlap or leave a gap.

    Raises:
        ConfigError: naming the two stages and their epochs.
    """
    if not stages:
        raise ConfigError("train_schedule: no stage given")
    for stage in stages:
        if stage.end < stage.start:
            raise ConfigError(
                f"train_schedule.{stage.index}: end {stage.end} is before start {stage.start}"
            )
    for before, after in pairwise(stages):
        if after.start != before.end + 1:
            what = "overlaps" if after.start <= before.end else "leaves a gap after"
            raise ConfigError(
                f"train_schedule.{after.index}: start {after.start} {what} stage {before.index}, "
                f"which ends at {before.end}; expected {before.end + 1}"
            )
