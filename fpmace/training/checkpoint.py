"""Checkpoints: everything that a run needs to go on as if it had not stopped.

A file is a ``torch.save`` of tensors, numbers and JSON text, read with ``weights_only=True``::

    {"format": "fpmace.checkpoint", "format_version": 1, "config": JSON, "progress": JSON,
     "model": raw weights, "ema": averages and their count or None, "optimizer": ...,
     "scheduler": ..., "random": generator states}
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fpmace.errors import ConfigError, ModelFileError
from fpmace.files import atomic_write
from fpmace.models.io import read_model_file, save_model

logger = logging.getLogger(__name__)

FORMAT = "fpmace.checkpoint"
FORMAT_VERSION = 1


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


@dataclass
class Checkpoint:
    """Contents of a checkpoint file; see the module's description."""

    config: dict[str, Any]
    progress: Progress
    model: dict[str, Any]
    ema: dict[str, Any] | None
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    random: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file under a temporary name and rename it."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": json.dumps(self.config),
            "progress": json.dumps(asdict(self.progress)),
            "model": self.model,
            "ema": self.ema,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "random": self.random,
        }
        with atomic_write(path) as temporary:
            torch.save(content, temporary)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a file without running code from it; tensors come on the CPU.

        Raises:
            ModelFileError: if the file is damaged, is not a checkpoint, or is of another version.
        """
        content = _read(path, FORMAT)
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


def _read(path: Path, expected: str) -> dict[str, Any]:
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many unrelated types for broken archives
        first_line = str(error).strip().split("\n", 1)[0]
        raise ModelFileError(
            f"{path}: damaged or not a checkpoint of fpmace "
            f"({type(error).__name__}: {first_line}); delete it to go on from an older one"
        ) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != expected:
        raise ModelFileError(f"{path}: expected a file of format '{expected}', found {found!r}")
    if content.get("format_version") != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: format version {content.get('format_version')!r}; "
            f"this fpmace reads version {FORMAT_VERSION}"
        )
    return content


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
        for path in self.folder.glob("*.pt") if self.folder.is_dir() else ():
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
        """The checkpoint of the highest epoch, or None.

        Raises:
            ModelFileError: if that file is damaged; it is not skipped.
        """
        found = self._numbered()
        return Checkpoint.load(found[-1][1]) if found else None

    def remove_leftovers(self) -> None:
        """Delete half-written files that a killed run left."""
        if not self.writes or not self.folder.is_dir():
            return
        for path in self.folder.glob(f".{self.name}_*.tmp.*"):
            path.unlink(missing_ok=True)

    def set_aside(self) -> None:
        """Move an earlier run's files to ``<folder>.previous``, so that none is mixed up or lost.

        Files that were set aside before are replaced.
        """
        stale = [path for _, path in self._numbered()]
        if self.folder.is_dir():
            stale += self.folder.glob(f"{self.name}_stage-*_best.model")
        if not stale or not self.writes:
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

    def load_best(self, stage: int) -> dict[str, Any] | None:
        """The best weights of a stage, or None if none were kept.

        Raises:
            ModelFileError: if the file is damaged.
        """
        path = self.best_path(stage)
        return read_model_file(path).state_dict if path.is_file() else None
