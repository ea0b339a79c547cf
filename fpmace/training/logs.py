"""Where the messages of a run go: standard output, and a file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        handlers = [logging.StreamHandler(sys.stdout), logging.FileHandler(path)]
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
        for handler in handlers:
            logger.removeHandler(handler)
            if isinstance(handler, logging.FileHandler):
                handler.close()
        logger.setLevel(previous[0])
        logger.propagate = previous[1]


class _ByLevel(logging.Formatter):
    """Names the level of warnings and errors only."""

    def __init__(self, plain: logging.Formatter, marked: logging.Formatter) -> None:
        super().__init__()
        self._plain, self._marked = plain, marked

    def format(self, record: logging.LogRecord) -> str:
        chosen = self._marked if record.levelno >= logging.WARNING else self._plain
        return chosen.format(record)
