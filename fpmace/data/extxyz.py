"""Extended XYZ, read frame by frame so that every error names its configuration."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict, read_xyz

from fpmace.data.configuration import Configuration, configuration_from_atoms
from fpmace.data.options import DataOptions
from fpmace.errors import DataError


@dataclass(frozen=True)
class Frame:
    """Where one frame lies in its file."""

    index: int
    offset: int
    n_bytes: int


def scan_frames(path: str | Path) -> list[Frame]:
    """Return the place of every frame; see :func:`iterate_frames`."""
    return list(iterate_frames(path))


def iterate_frames(path: str | Path) -> Iterator[Frame]:
    """Yield the place of every frame, without parsing numbers or keeping anything.

    Raises:
        DataError: the file is missing or empty, a frame has no atom count, or the last frame has
            fewer lines than atoms.
    """
    empty = True
    with _opened(path) as stream:
        for frame in _scan(stream, Path(path)):
            empty = False
            yield frame
    if empty:
        raise DataError(f"{path}: holds no configurations")


@contextmanager
def _opened(path: str | Path) -> Iterator[io.BufferedReader]:
    if Path(path).is_dir():
        raise DataError(f"{path}: is a directory, expected an extended XYZ file")
    try:
        with Path(path).open("rb") as stream:
            yield stream
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _scan(stream: io.BufferedReader, path: Path) -> Iterator[Frame]:
    index, offset, blank_at = 0, 0, None
    while line := stream.readline():
        if not line.strip():
            blank_at = offset
            offset += len(line)
            continue
        where = f"{path}: configuration {index}"
        if blank_at is not None:
            raise DataError(f"{where}: an empty line where an atom count should stand")
        text = line.decode(errors="replace").strip()
        if not text.isdecimal():
            raise DataError(f"{where}: expected an atom count, found {text[:40]!r}")
        n_atoms = int(text)
        size = len(line)
        for number in range(n_atoms + 1):
            row = stream.readline()
            if (not row.strip() and number > 0) or not row:
                raise DataError(
                    f"{where}: the file is truncated: {n_atoms} atoms announced,"
                    f" {max(number - 1, 0)} found"
                )
            size += len(row)
        yield Frame(index, offset, size)
        index, offset = index + 1, offset + size


def read_frame_info(path: str | Path, frames: Iterable[Frame]) -> Iterator[dict[str, object]]:
    """Yield the comment line of each frame as a dictionary, without reading its atoms."""
    with _opened(path) as stream:
        for frame in frames:
            stream.seek(frame.offset)
            stream.readline()
            text = stream.readline().decode(errors="replace")
            try:
                yield key_val_str_to_dict(text)
            except Exception as error:
                raise _unreadable(path, frame, error) from None


def read_frames(
    path: str | Path, frames: Iterable[Frame], options: DataOptions
) -> Iterator[Configuration]:
    """Yield the configurations of the given frames.

    Raises:
        DataError: a frame cannot be parsed or holds an unusable value.
    """
    for frame, atoms in read_structures(path, frames):
        yield configuration_from_atoms(atoms, options, source=str(path), index=frame.index)


def read_structures(path: str | Path, frames: Iterable[Frame]) -> Iterator[tuple[Frame, Atoms]]:
    """Yield the given frames as ASE structures.

    Raises:
        DataError: a frame cannot be parsed.
    """
    with _opened(path) as stream:
        for frame in frames:
            stream.seek(frame.offset)
            text = stream.read(frame.n_bytes).decode(errors="replace")
            yield frame, _parse(text, path, frame)


def read_configurations(path: str | Path, options: DataOptions) -> Iterator[Configuration]:
    """Yield every configuration of an extended XYZ file."""
    yield from read_frames(path, scan_frames(path), options)


def _parse(text: str, path: str | Path, frame: Frame) -> Atoms:
    try:
        return next(iter(read_xyz(io.StringIO(text), slice(0, 1))))
    except Exception as error:
        raise _unreadable(path, frame, error) from None


def _unreadable(path: str | Path, frame: Frame, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        reason = f"unknown element or key {reason}"
    columns = re.search(r"tuple of length (\d+) to structure with (\d+) fields", reason)
    if columns:
        reason = f"a row has {columns[1]} columns, Properties announces {columns[2]}"
    return DataError(
        f"{path}: configuration {frame.index}: not valid extended XYZ: {reason[:160]}"
    )
