"""Weights & Biases: runs kept on disk, or sent to a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from matplotlib.figure import Figure

from fpmace.annotations import Doc, Values
from fpmace.registry import register_logger
from fpmace.training.loggers.base import Logger, missing

if TYPE_CHECKING:
    import wandb


@register_logger("wandb")
class WandbLogger(Logger):
    """Numbers of every epoch and plots at the end, for Weights & Biases.

    Offline, nothing leaves the machine; ``wandb sync`` sends what was kept. A training that goes
    on is another run of the same group.

    Example:
        >>> from fpmace.training.loggers import build_loggers
        >>> build_loggers([{"type": "wandb", "project": "water"}], folder=Path("run"), name="a")
        ... # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        folder: Path,
        name: str,
        project: Annotated[str, Doc("project that the run belongs to")] = "fpmace",
        mode: Annotated[
            Literal["offline", "online"], Doc("keep the run in work_dir/wandb, or send it")
        ] = "offline",
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise missing("wandb", error) from None
        self._wandb = wandb
        self.folder, self.name, self.project, self.mode = folder, name, project, mode
        self._run: wandb.Run | None = None

    def begin(self, config: Values, *, after_epoch: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=self.project,
            name=self.name,
            group=self.name,
            dir=str(self.folder),
            mode=self.mode,
            config=config,
            settings=self._wandb.Settings(silent=self.mode == "offline", console="off"),
        )

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        if self._run is not None:
            self._run.log(dict(values), step=epoch)

    def end(self, values: Mapping[str, float], figures: Mapping[str, Figure]) -> None:
        if self._run is not None:
            self._run.summary.update({f"final/{name}": value for name, value in values.items()})
            self._run.log({name: self._wandb.Image(figure) for name, figure in figures.items()})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
