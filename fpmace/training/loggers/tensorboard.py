"""TensorBoard: event files that ``tensorboard --logdir`` shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from matplotlib.figure import Figure

from fpmace.annotations import Doc, Values
from fpmace.registry import register_logger
from fpmace.training.loggers.base import Logger, missing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@register_logger("tensorboard")
class TensorBoardLogger(Logger):
    """Numbers of every epoch and plots at the end, for TensorBoard.

    Example:
        >>> from fpmace.training.loggers import build_loggers
        >>> build_loggers(["tensorboard"], folder=Path("run"), name="a")  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        folder: Path,
        name: str,
        subfolder: Annotated[str, Doc("folder for the event files, in work_dir")] = "tensorboard",
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing("tensorboard", error) from None
        self._make = SummaryWriter
        self.folder = folder / subfolder / name
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> SummaryWriter:
        """The open writer."""
        if self._writer is None:
            self._writer = self._make(str(self.folder))
        return self._writer

    def begin(self, config: Values, *, after_epoch: int) -> None:
        # What a run that was stopped had written of later epochs is not shown.
        self._writer = self._make(str(self.folder), purge_step=after_epoch + 1)
        lines = "\n".join(f"    {name}: {value}" for name, value in config.items())
        self.writer.add_text("configuration", lines, max(after_epoch, 0))

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def end(self, values: Mapping[str, float], figures: Mapping[str, Figure]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"final/{name}", value)
        for name, figure in figures.items():
            self.writer.add_figure(name, figure)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
