"""Who tells why a command ends, where several processes end for one reason."""

from __future__ import annotations

from typing import Protocol

from fpmace.errors import FpmaceError


class PeerError(FpmaceError):
    """Another process has failed or is gone; it, or who finds it missing, says why."""


class Voice(Protocol):
    """Knows the other processes; see :class:`fpmace.distributed.member.Member`."""

    def own(self, text: str) -> str | None:
        """What to print on a failure of this process; None if another one was first."""
        ...

    def foreign(self, text: str, patience: float | None) -> str | None:
        """The same where the failure may come from another process, looked for so many seconds."""
        ...


_voices: list[Voice] = []


def speak_through(voice: Voice | None) -> None:
    """Let failures be told through ``voice``; None: as a process on its own."""
    _voices[:] = [] if voice is None else [voice]


def reason_of(error: BaseException, text: str) -> str | None:
    """What to print on a failure, with the rank; None if another process has told."""
    if not _voices:
        return text
    return _voices[0].foreign(text, None) if isinstance(error, PeerError) else _voices[0].own(text)


def reason_of_signal(text: str) -> str | None:
    """The same on a signal, which a launcher sends when another process has failed."""
    return _voices[0].foreign(text, 0.5) if _voices else text
