"""Where the messages of a run go: standard output, and a file."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fpmace.files import named_errors


@contextmanager
def run_log(path: Path, level: str, *, writes: bool = True) -> Iterator[None]:
    """Send messages of fpmace to standard output and append them to ``path``.

    Args:
        writes: False in a process that does not own the output: nothing is shown or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("fpmace")
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if writes:
        handlers = [_Output(sys.stdout), _LogFile(path)]
    previous = (logger.level, logger.propagate)
    formatter = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    warning = logging.Formatter("%(asctime)s %(levelname)s: %(message)s", "%H:%M:%S")
    for handler in handlers:
        handler.setFormatter(_ByLevel(formatter, warning))
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(previous[0])
        logger.propagate = previous[1]
        for handler in handlers:
            logger.removeHandler(handler)
        for handler in handlers:
            handler.close()


class _Output(logging.StreamHandler[TextIO]):
    """Lets errors of writing end the run, not fill the screen; a closed pipe ends the output."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exception(), BrokenPipeError):
            self.setStream(open(os.devnull, "w"))  # noqa: SIM115
            return
        raise


class _LogFile(logging.FileHandler):
    """The same for a file, which the error names."""

    def __init__(self, path: Path) -> None:
        with named_errors(path):
            super().__init__(path)

    def handleError(self, record: logging.LogRecord) -> None:
        with named_errors(self.baseFilename):
            raise

    def close(self) -> None:
        with named_errors(self.baseFilename):
            super().close()


class _ByLevel(logging.Formatter):
    """Names the level of warnings and errors only."""

    def __init__(self, plain: logging.Formatter, marked: logging.Formatter) -> None:
        super().__init__()
        self._plain, self._marked = plain, marked

    def format(self, record: logging.LogRecord) -> str:
        chosen = self._marked if record.levelno >= logging.WARNING else self._plain
        return chosen.format(record)
