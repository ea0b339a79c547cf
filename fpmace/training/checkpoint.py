"""Checkpoints: everything that a run needs to go on as if it had not stopped.

A file is an archive (:mod:`fpmace.archive`)::

    {"format": "fpmace.checkpoint", "format_version": 1, "config": JSON, "progress": JSON,
     "model": raw weights, "ema": averages and their count or None, "optimizer": ...,
     "scheduler": ..., "random": generator states,
     "model_config": JSON, "checksum": of all this}
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from torch import Tensor, nn

from fpmace.annotations import Values
from fpmace.archive import copied, nonfinite_tensor, open_archive, write_archive
from fpmace.errors import ConfigError, ModelFileError, TrainingError
from fpmace.models.io import read_model_file, save_model

logger = logging.getLogger(__name__)

FORMAT = "fpmace.checkpoint"
FORMAT_VERSION = 1
_OWN = r"(epoch-\d+|stage-\d+_best)"


@dataclass
class Progress:
    """Position in the schedule.

    Attributes:
        stage: index of the stage.
        epoch: last epoch that was finished; -1 before the first.
        step: optimizer steps taken in all.
        best_loss: lowest validation loss of this stage; None before the first validation.
        best_epoch: its epoch.
        waited: validations since then.
        stage_done: whether the stage has ended before its last epoch, for lack of patience.
        n_graphs: training structures seen in this stage, over all epochs.
        n_used: those that gradients came from.
        world_size: processes that trained, of which each took its own part of every step.
    """

    stage: int = 0
    epoch: int = -1
    step: int = 0
    best_loss: float | None = None
    best_epoch: int | None = None
    waited: int = 0
    stage_done: bool = False
    n_graphs: int = 0
    n_used: int = 0
    world_size: int = 1


@dataclass
class Checkpoint:
    """Contents of a checkpoint file; see the module's description."""

    config: Values
    progress: Progress
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: Values
    scheduler: Values
    random: Values
    model_config: Values = field(default_factory=dict)

    def copy(self) -> Checkpoint:
        """What it is now, whatever the training changes later."""
        values = {item.name: copied(getattr(self, item.name)) for item in fields(self)}
        return Checkpoint(**values | {"progress": replace(self.progress)})

    def save(self, path: Path) -> None:
        """Write the file under a temporary name and rename it.

        Raises:
            TrainingError: if weights, their averages or the optimizer hold NaN or infinity.
        """
        state = {"model": self.model, "ema": self.ema, "optimizer": self.optimizer}
        lost = nonfinite_tensor(state)
        if lost is not None:
            raise TrainingError(
                f"epoch {self.progress.epoch}: {lost} is not finite, so no checkpoint is written "
                "and the last one is kept; lower lr, set clip_grad, go on with --restart_latest"
            )
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": json.dumps(self.config),
            "progress": json.dumps(asdict(self.progress)),
            **state,
            "scheduler": self.scheduler,
            "random": self.random,
            "model_config": json.dumps(self.model_config),
        }
        write_archive(path, content)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a file without running code from it; tensors come on the CPU.

        Raises:
            ModelFileError: if the file is damaged, is not a checkpoint, or is of another version.
        """
        content = open_archive(path, FORMAT, FORMAT_VERSION, "checkpoint")
        try:
            return cls(
                config=json.loads(content["config"]),
                progress=Progress(**json.loads(content["progress"])),
                model=content["model"],
                ema=content["ema"],
                optimizer=content["optimizer"],
                scheduler=content["scheduler"],
                random=content["random"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path}: checkpoint is incomplete ({error})") from error


class CheckpointStore:
    """The checkpoint folder of a run: the last few checkpoints, and the best weights per stage.

    Args:
        folder: made when the first file is written.
        name: name of the run.
        keep: number of checkpoints kept.
        writes: whether this process owns the files; False: it only reads them.
    """

    def __init__(self, folder: Path, name: str, *, keep: int = 2, writes: bool = True) -> None:
        if keep < 1:
            raise ConfigError(f"keep_checkpoints: expected a whole number >= 1, got {keep!r}")
        self.folder = folder
        self.name = name
        self.keep = keep
        self.writes = writes

    def path(self, epoch: int) -> Path:
        return self.folder / f"{self.name}_epoch-{epoch}.pt"

    def best_path(self, stage: int) -> Path:
        return self.folder / f"{self.name}_stage-{stage}_best.model"

    def _numbered(self) -> list[tuple[int, Path]]:
        pattern = re.compile(re.escape(self.name) + r"_epoch-(\d+)\.pt")
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match:
                found.append((int(match.group(1)), path))
        return sorted(found)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then delete the oldest beyond ``keep``."""
        if not self.writes:
            return
        checkpoint.save(self.path(checkpoint.progress.epoch))
        for _, path in self._numbered()[: -self.keep]:
            path.unlink(missing_ok=True)

    def latest(self) -> Checkpoint | None:
        """The checkpoint of the highest epoch, or None; if damaged, the one before with a warning.

        Raises:
            ModelFileError: if no file can be read; says why the last one cannot.
        """
        fault: ModelFileError | None = None
        for _, path in reversed(self._numbered()):
            try:
                checkpoint = Checkpoint.load(path)
            except ModelFileError as error:
                fault = fault or error
                continue
            if fault is not None:
                logger.warning("%s; going on from the one before, %s", fault, path)
            return checkpoint
        if fault is not None:
            raise fault
        return None

    def remove_leftovers(self) -> None:
        """Delete half-written files that a killed run left."""
        if not self.writes or not self.folder.is_dir():
            return
        own = re.compile(rf"\.{re.escape(self.name)}_{_OWN}\.\w+\.tmp\.(pt|model)")
        for path in self.folder.iterdir():
            if own.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def set_aside(self) -> None:
        """Move an earlier run's files to ``<folder>.previous``, so that none is mixed up or lost.

        Files that were set aside before are replaced.
        """
        if not self.writes:
            return
        stale = [path for _, path in self._numbered()]
        if self.folder.is_dir():
            own = re.compile(rf"{re.escape(self.name)}_stage-\d+_best\.model")
            stale += [path for path in self.folder.iterdir() if own.fullmatch(path.name)]
        if not stale:
            return
        previous = self.folder.with_name(self.folder.name + ".previous")
        previous.mkdir(exist_ok=True)
        for path in stale:
            path.replace(previous / path.name)
        logger.warning(
            "%d checkpoint files of an earlier run '%s' moved to %s; "
            "--restart_latest would have continued it",
            len(stale),
            self.name,
            previous,
        )

    def save_best(self, stage: int, model: nn.Module) -> None:
        """Keep the model as it is now: the lowest validation loss of a stage.

        The file is a model file like any other.
        """
        if self.writes:
            save_model(self.best_path(stage), model, {"run": self.name, "stage": stage})

    def load_best(self, stage: int) -> dict[str, Tensor] | None:
        """The best weights of a stage, or None if none were kept.

        Raises:
            ModelFileError: if the file is damaged.
        """
        path = self.best_path(stage)
        return read_model_file(path).state_dict if path.is_file() else None
