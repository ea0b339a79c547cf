"""Failures that a user can mend. Each message is one clear line: what, where, what to do."""

from __future__ import annotations

from collections.abc import Iterable


class FpmaceError(Exception):
    """Base of every failure that fpmace raises on purpose; the command line exits 2 on it."""


class ConfigError(FpmaceError):
    """An option is unknown, missing, of the wrong type, or clashes with another.

    ``where`` is the place in the configuration (``field_readout_config.type``); it leads the text
    and is kept apart so that a report can add the file and line.
    """

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where
        self.message = message


class RegistryError(ConfigError):
    """A name is not registered, or is registered twice."""


class DataError(FpmaceError):
    """A configuration or data file is unusable; names file, configuration index and key."""


class ModelFileError(FpmaceError):
    """A model, checkpoint or foreign model file cannot be read or does not fit."""


class ScfError(FpmaceError):
    """The self-consistency loop diverged, or did not converge where that was demanded."""


class TrainingError(FpmaceError):
    """Training cannot start or go on (non-finite loss, label missing for a loss, ...)."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like ``name``, or None if none resembles it."""
    import difflib

    lower = {item.lower(): item for item in known}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return lower[found[0]] if found else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'X'?`` for the closest known name, or an empty string."""
    match = closest(name, known)
    return f"; did you mean '{match}'?" if match else ""
