"""The metrics files of runs, read for plotting; a run may still be going on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fpmace.annotations import Values
from fpmace.errors import DataError

ENDING = "_metrics.jsonl"
_NEEDED = ("epoch", "stage", "stage_name", "lr", "train", "valid")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        label: its name in legends.
        path: the metrics file.
        records: one per epoch, as :mod:`fpmace.training.recorder` writes them.
        cut: whether the last line was incomplete and left out.
        end: ``train`` and ``valid`` of the evaluation at the end; empty if there was none yet.
    """

    label: str
    path: Path
    records: list[Values]
    cut: bool = False
    end: Values = field(default_factory=dict)

    @property
    def epochs(self) -> list[int]:
        return [int(item["epoch"]) for item in self.records]

    @property
    def stages(self) -> list[tuple[str, int]]:
        """Name and first epoch of each stage."""
        found: dict[int, tuple[str, int]] = {}
        for item in self.records:
            found.setdefault(item["stage"], (str(item["stage_name"]), int(item["epoch"])))
        return list(found.values())

    def __str__(self) -> str:
        names = ", ".join(f"{name} from {first}" for name, first in self.stages)
        text = f"{self.path}: epochs {self.epochs[0]} to {self.epochs[-1]} ({names})"
        return f"{text}; the last line is incomplete and left out" if self.cut else text


def read_runs(paths: Iterable[str | Path], labels: Sequence[str] | None = None) -> list[Run]:
    """Read metrics files, or the metrics files that folders hold.

    Args:
        labels: names for the legend, one per file; made from the paths if not given.

    Raises:
        DataError: a file is missing, empty, or not a metrics file; labels are too few or many.
    """
    files = [file for path in paths for file in _files(Path(path))]
    if labels is not None and len(labels) != len(files):
        raise DataError(f"labels: got {len(labels)} for {len(files)} metrics files")
    names = labels or _labels(files)
    return [_read(file, name) for file, name in zip(files, names, strict=True)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.glob(f"*{ENDING}"))
    if not found:
        raise DataError(f"{path}: holds no *{ENDING}; give the work_dir of a run, or the file")
    return found


def _labels(files: Sequence[Path]) -> list[str]:
    """File names, with as many folders before them as it takes to tell them apart."""
    stems = [file.absolute().with_name(file.name.removesuffix(ENDING)).parts for file in files]
    for count in range(1, max(len(parts) for parts in stems) + 1):
        names = ["/".join(parts[-count:]) for parts in stems]
        if len(set(names)) == len(names):
            return names
    return [f"{name} {number}" for number, name in enumerate(names, start=1)]


def _read(path: Path, label: str) -> Run:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not a metrics file ({error})") from None
    records: list[Values] = []
    cut = False
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines) or number == 1:
                raise DataError(
                    f"{path}: line {number} is not JSON; give the *{ENDING} of a training run"
                ) from None
            cut = True
            continue
        records.append(_checked(record, path, number))
    if not records:
        raise DataError(f"{path}: holds no epochs yet; wait for the first epoch to end")
    return Run(label, path, records, cut, _end(path))


def _end(path: Path) -> Values:
    """The results beside a metrics file, unless epochs came after them."""
    results = path.with_name(path.name.removesuffix(ENDING) + "_results.json")
    try:
        if results.stat().st_mtime < path.stat().st_mtime:
            return {}
        found = json.loads(results.read_text(encoding="utf-8"))
        return {split: found.get(split) for split in ("train", "valid")}
    except (OSError, ValueError, AttributeError):
        return {}


def _checked(record: Values, path: Path, number: int) -> Values:
    missing = [name for name in _NEEDED if not isinstance(record, dict) or name not in record]
    if missing:
        raise DataError(
            f"{path}: line {number} has no '{missing[0]}', so this is not a metrics file; give "
            f"the *{ENDING} of a training run"
        )
    return record
