"""Metrics as JSON lines: one object per epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fpmace.annotations import Values
from fpmace.files import atomic_write, named_errors
from fpmace.training.loggers.base import Logger, scalars


def _plain(value: object) -> object:
    """JSON has no NaN or infinity: write null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class MetricsRecorder:
    """Appends epochs to a ``.jsonl`` file, and tells loggers of them.

    Args:
        writes: whether this process owns the file; False: it only reads it.
        loggers: told of the same epochs.
        config: of the run, which they are told first.
    """

    def __init__(
        self,
        path: Path,
        *,
        writes: bool = True,
        loggers: Sequence[Logger] = (),
        config: Values | None = None,
    ) -> None:
        self.path, self.writes = path, writes
        self.loggers, self.config = loggers, config or {}

    def begin(self, *, after_epoch: int) -> None:
        """Keep the lines up to an epoch (a resumed run repeats the later ones), drop the rest."""
        if not self.writes:
            return
        kept = [line for line in self.read() if line.get("epoch", -1) <= after_epoch]
        kept = kept if after_epoch >= 0 else []
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        for logger in self.loggers:
            logger.begin(self.config, after_epoch=after_epoch)

    def write(self, record: Mapping[str, object]) -> None:
        """Append one line."""
        if not self.writes:
            return
        with named_errors(self.path), self.path.open("a") as stream:
            stream.write(json.dumps(_plain(record)) + "\n")
        for logger in self.loggers:
            logger.epoch(int(str(record["epoch"])), scalars(record))

    def read(self) -> list[Values]:
        """All complete lines; one cut short by a kill is left out."""
        if not self.path.is_file():
            return []
        lines = []
        for text in self.path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines
