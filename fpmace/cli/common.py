"""What all commands share: how they read arguments, fail and are stopped, and print parts."""

from __future__ import annotations

import argparse
import errno
import multiprocessing
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import NoReturn, Self

from fpmace.distributed.voice import reason_of, reason_of_signal
from fpmace.errors import ConfigError, FpmaceError

EXIT_FAILURE = 2
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_GRACE = 20.0
"""Seconds that a stopped command has to save what it can and end its workers."""
_REMEDIES = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some space or write elsewhere",
    errno.EFBIG: "write where larger files are allowed",
    errno.EACCES: "change its permissions or name another",
    errno.EPERM: "change its permissions or name another",
    errno.EROFS: "write elsewhere",
    errno.ENOTDIR: "name a folder where there is a file now",
    errno.EEXIST: "name a folder where there is a file now",
    errno.EISDIR: "name a file where there is a folder now",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(" ".join(message.split()), where="command line")


def run_command(command: Callable[[], int]) -> int:
    """Run a command; what a user can mend becomes one text on stderr and exit status 2.

    An interrupt or SIGTERM unwinds the command as KeyboardInterrupt and gives status 130 or 143.
    """
    with _Signals() as stopped:
        try:
            status = command()
            sys.stdout.flush()
            return status
        except SystemExit:
            raise
        except BaseException as error:
            if stopped.by is None and isinstance(error, KeyboardInterrupt):
                stopped.by = signal.SIGINT
            if stopped.by is not None:
                word = _WORDS[stopped.by]
                told = reason_of_signal(word)
                _tell(told, "" if told == word else "error: ")
                return 128 + stopped.by
            if isinstance(error, BrokenPipeError):
                # The reader of our output has gone (``| head``); there is no one left to tell.
                sys.stderr.close()
                return 0
            text = explain(error)
            told = reason_of(error, text or f"{type(error).__name__}: {error}")
            if text is None and told is not None:
                raise
            _tell(told, "error: ")
            return EXIT_FAILURE


def _tell(text: str | None, kind: str = "") -> None:
    if text is not None:
        print(f"{kind}{text}", file=sys.stderr, flush=True)


def explain(error: BaseException) -> str | None:
    """What to tell a user, or None where the fault is the program's."""
    if isinstance(error, FpmaceError):
        return str(error)
    if isinstance(error, OSError) and (error.errno or "errno = " in str(error)):
        return _explain_os(error)
    memory = ("OutOfMemoryError" in type(error).__name__, "can't allocate memory" in str(error))
    if isinstance(error, MemoryError) or any(memory):
        return "not enough memory; lower batch_size or take smaller structures"
    if isinstance(error, (UnicodeEncodeError, UnicodeDecodeError)):
        return f"a name or text with characters that cannot be written ({error.reason})"
    return None


def _explain_os(error: OSError) -> str:
    number = error.errno or 0
    reason = os.strerror(number) if number else str(error.strerror or error)
    place = f"{error.filename}: " if error.filename else ""
    remedy = f"; {_REMEDIES[number]}" if number in _REMEDIES else ""
    return " ".join(f"{place}{reason}{remedy}".split())


class _Signals:
    """Turns the first SIGINT or SIGTERM into KeyboardInterrupt; the second ends the process.

    Attributes:
        by: the signal that came, if any.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._stop) for number in _WORDS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.by is not None:
            os._exit(128 + number)
        self.by = signal.Signals(number)
        # Workers end with us: what that breaks while we unwind is no news.
        sys.unraisablehook = lambda _: None
        while signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL:
            with suppress(RuntimeError):  # by a handler of torch, for a worker that is gone
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        guard = threading.Timer(_GRACE, self._give_up)
        guard.daemon = True
        guard.start()
        raise KeyboardInterrupt

    def _give_up(self) -> None:
        """Unwinding waits for a worker that is gone, or takes too long."""
        assert self.by is not None
        for child in multiprocessing.active_children():
            child.kill()
        os.write(2, f"{_WORDS[self.by]}\n".encode())
        os._exit(128 + self.by)


def _forget_signals() -> None:
    """Forked workers end at once, by the system: their parent says what there is to say."""
    for number in _WORDS:
        if isinstance(getattr(signal.getsignal(number), "__self__", None), _Signals):
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_signals)


def list_blocks() -> str:
    """Every registered part by kind, with its options and one line of description."""
    from fpmace import registry

    lines: list[str] = []
    for kind in registry.kinds():
        entries = registry.describe(kind.name)
        if not entries:
            continue
        lines += ["", f"{kind.name} ({kind.what})", "-" * (len(kind.name) + len(kind.what) + 3)]
        for entry in entries:
            origin = f"  [{entry.source}]" if entry.source is not None else ""
            lines.append(f"  {entry.name}{origin}")
            lines += textwrap.wrap(
                entry.summary, 92, initial_indent="      ", subsequent_indent="      "
            )
            lines += [f"      - {option.describe()}" for option in entry.options]
    return "\n".join(lines).strip("\n")
