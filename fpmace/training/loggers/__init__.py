"""Where the progress of a training goes beside the JSON lines."""

from fpmace.training.loggers.base import Logger, build_loggers, scalars

__all__ = ["Logger", "build_loggers", "scalars"]
