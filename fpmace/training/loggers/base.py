"""What a logger is: registered under the kind ``logger``, told of every epoch by one process."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fpmace import registry
from fpmace.annotations import Values
from fpmace.errors import ConfigError


class Logger(ABC):
    """Told of a training as it goes; made once, by the process that owns the output.

    A constructor may ask for ``folder`` (the work_dir, a path) and ``name`` (of the run); its
    other arguments are options.
    """

    def begin(self, config: Values, *, after_epoch: int) -> None:  # noqa: B027
        """The training starts (``after_epoch`` -1) or goes on after an epoch."""

    @abstractmethod
    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """An epoch has ended with these numbers, see :func:`scalars`."""

    def end(  # noqa: B027
        self, values: Mapping[str, float], figures: Mapping[str, Figure]
    ) -> None:
        """The training has ended: errors of the final model, and plots, by name."""

    def close(self) -> None:  # noqa: B027
        """Nothing follows, whether the training has ended or was stopped."""


registry.set_base("logger", Logger)


def build_loggers(
    parts: Sequence[registry.PartConfig], *, folder: Path, name: str
) -> list[Logger]:
    """The loggers that a configuration names.

    Raises:
        ConfigError: an unknown logger or option, or a package that is not installed.
    """
    return [
        registry.build("logger", part, where=f"loggers.{number}", folder=folder, name=name)
        for number, part in enumerate(parts)
    ]


def scalars(record: Mapping[str, object]) -> dict[str, float]:
    """The numbers of an epoch (or of results) by path, such as ``valid/errors/forces/rmse``."""
    skipped = ("epoch", "step", "stage", "n_graphs", "n_used")
    return {
        name: value for name, value in _numbers(record, "") if name.split("/")[-1] not in skipped
    }


def _numbers(value: object, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{path}/{key}" if path else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield path, float(value)


def missing(package: str, error: ImportError) -> ConfigError:
    """What to say where a package is not there."""
    return ConfigError(
        f"needs the package {package} ({error}): pip install 'fpmace[{package}]'", where="loggers"
    )
