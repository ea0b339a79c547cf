"""Membership in a group of processes: signs of life, and one reason when all have to end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from torch.distributed import Store

from fpmace.distributed.process import Process

EXIT_FAILURE = 2
_REASON, _ALIVE = "reason", "alive"
_GRACE = 10
"""Seconds that a process has to save what it can once another one has failed."""
_REMEDY = "started again, a training goes on with --restart_latest"


class Member:
    """A process of the group, watched by two threads while it works.

    One writes a sign of life twice a second, and looks for those of the others: the first process
    for all, the others for that of the first. The second thread ends this process when one is
    missing or the meeting point does not answer. Processes on one machine are also looked up in
    the list of the system, which shows at once who was killed. Whoever fails, or finds another
    missing, first leaves the reason with the meeting point and prints it; all others end quietly.

    Args:
        store: connection to the meeting point that nobody else uses.
        timeout: seconds without a sign of life after which a process is given up.
    """

    def __init__(self, process: Process, store: Store, *, timeout: float) -> None:
        self.process, self.store, self.timeout = process, store, timeout
        place = (socket.gethostname(), os.getpid())
        self.places = process.gather(place)
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._lock, self._done = threading.Lock(), threading.Event()
        self._beat, self._answered, self._cause = 0, time.monotonic(), ""
        self._sign()
        process.wait()
        for loop in (self._live, self._watch):
            threading.Thread(target=loop, daemon=True).start()

    def leave(self) -> None:
        """Stop watching: nobody is missed any more."""
        self._done.set()

    def own(self, text: str) -> str | None:
        """See :class:`fpmace.distributed.voice.Voice`."""
        self._end_soon()
        return self._claim(f"{self._name(self.process.rank)}: {text}")

    def foreign(self, text: str, patience: float | None) -> str | None:
        """See :class:`fpmace.distributed.voice.Voice`."""
        until = time.monotonic() + (self.timeout + 5.0 if patience is None else patience)
        while time.monotonic() < until and not (cause := self._cause or self._lost()):
            time.sleep(0.05)
        self._end_soon()
        return self._claim(cause or f"{self._name(self.process.rank)}: {text}")

    def _end_soon(self) -> None:
        """From here on the process ends, whatever it or a library still waits for."""
        self._done.set()
        signal.alarm(_GRACE)

    def _name(self, rank: int) -> str:
        return f"process {rank} of {self.process.world_size}"

    def _claim(self, text: str) -> str | None:
        """The text if no other process has told a reason yet."""
        mine = f"{self.process.rank} {text}"
        try:
            with self._lock:
                told = self.store.compare_set(_REASON, "", mine)
        except RuntimeError:  # the meeting point has gone with the first process
            return text if self.process.local_rank == 0 or self.process.rank == 1 else None
        return text if told.decode() == mine else None

    def _live(self) -> None:
        interval = min(0.5, self.timeout / 10)
        while not self._done.wait(interval) and not self._cause:
            try:
                self._sign()
                if self.store.check([_REASON]):
                    self._cause = self.store.get(_REASON).decode().partition(" ")[2]
                else:
                    self._cause = self._silent()
            except RuntimeError:
                self._cause = f"{self._name(0)}, where all meet, is gone; {_REMEDY}"
            self._answered = time.monotonic()

    def _sign(self) -> None:
        self._beat += 1
        with self._lock:
            self.store.set(f"{_ALIVE}/{self.process.rank}", str(self._beat))

    def _silent(self) -> str:
        """A process that has not been heard of for too long, or ''."""
        ranks = [r for r in range(self.process.world_size) if (r == 0) != self.process.writes]
        now = time.monotonic()
        with self._lock:
            values = self.store.multi_get([f"{_ALIVE}/{rank}" for rank in ranks])
        for rank, value in zip(ranks, values, strict=True):
            if rank not in self._seen or self._seen[rank][0] != value:
                self._seen[rank] = (value, now)
            if now - self._seen[rank][1] > self.timeout:
                host = self.places[rank][0]
                return (
                    f"{self._name(rank)} on {host} gave no sign of life for {self.timeout:g} s "
                    f"(process_timeout); {_REMEDY}"
                )
        return ""

    def _lost(self) -> str:
        """A process on this machine that the system does not run any more, or ''."""
        for rank, (host, pid) in enumerate(self.places):
            if host == self.places[self.process.rank][0] and not _runs(pid):
                return (
                    f"{self._name(rank)} (pid {pid} on {host}) was ended from outside: killed, or "
                    f"out of memory; {_REMEDY}"
                )
        return ""

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            cause = self._cause or self._lost()
            if not cause and time.monotonic() - self._answered > self.timeout:
                cause = f"the meeting point gave no answer for {self.timeout:g} s; {_REMEDY}"
            if cause:
                # Who fails by itself tells before it is gone, and is found by _live.
                time.sleep(0.0 if self._cause else 1.0)
                if not self._done.is_set():
                    self._end(cause)

    def _end(self, cause: str) -> None:
        """Print the cause if nobody has, give the main thread a while, end the process."""
        text = self._claim(self._cause or cause)
        if text is not None:
            with suppress(OSError):
                os.write(2, f"error: {text}\n".encode())
        signal.alarm(2 * _GRACE)
        time.sleep(_GRACE)
        os._exit(EXIT_FAILURE)


def _runs(pid: int) -> bool:
    """Whether the system runs a process that has not ended; a zombie has."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:
        return not Path("/proc/self/stat").exists() or Path(f"/proc/{pid}").exists()
    return state not in "ZX"
