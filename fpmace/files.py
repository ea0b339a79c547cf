"""Writing files so that no reader ever sees half of one, and no two runs write the same."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fpmace.errors import ConfigError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes the name ``path`` on success only.

    The temporary file keeps the suffix of ``path`` (some writers choose the format by it) and is
    removed when the block raises. Missing parent folders are made.

    Raises:
        OSError: naming ``path``.

    Example:
        >>> with atomic_write("model.txt") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("all or nothing")
    """
    target = Path(path)
    with named_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}.", suffix=f".tmp{target.suffix}"
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def check_output(output: str | Path, inputs: Iterable[object], where: str = "output") -> None:
    """Refuse to write over a folder or over a file that is read.

    Args:
        inputs: names of files that are read; what is no file passes.

    Raises:
        ConfigError: naming ``output``.
    """
    target = Path(output)
    if target.is_dir():
        raise ConfigError(f"'{output}' is a folder; name a file", where=where)
    for item in inputs:
        if not isinstance(item, (str, Path)):
            continue
        same = Path(item).resolve() == target.resolve()
        if same or (Path(item).is_file() and target.is_file() and target.samefile(item)):
            raise ConfigError(
                f"'{output}' is the input file '{item}'; give another name", where=where
            )


@contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Say in errors of the system which file was to be written, not how."""
    try:
        yield
    except OSError as error:
        own = error.filename is None or str(error.filename).startswith(f"{Path(path).parent}/.")
        if not own or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a file, made if missing, for the time of the block.

    The system frees the lock of a process that is gone, however it ended.

    Args:
        what: what holds it, for the message.

    Raises:
        ConfigError: if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path} is in use by another process; wait for it, or choose another name or "
                "work_dir",
                where=what,
            ) from None
        yield


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
