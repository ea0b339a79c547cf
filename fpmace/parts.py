"""The modules whose import registers the parts that come with fpmace."""

from __future__ import annotations

import importlib
import pkgutil

_PACKAGES = (
    "fpmace.blocks",
    "fpmace.electrostatics",
    "fpmace.models",
    "fpmace.scf.solvers",
    "fpmace.differentiation",
    "fpmace.density_modes",
)
_ABOVE_MODELS = {
    "error_table": "fpmace.metrics.error_tables",
    "logger": "fpmace.training.loggers",
    "loss": "fpmace.training.losses",
    "optimizer": "fpmace.training.optimizers",
}
"""Kinds that models do not need: a program that only uses one does not import them."""
_imported: set[str] = set()


def import_builtin_parts(kind: str | None = None) -> None:
    """Import the modules that hold registered parts, once.

    Args:
        kind: only those that hold parts of this kind; None: all.
    """
    if kind is None or kind not in _ABOVE_MODELS:
        for name in _PACKAGES:
            _import_once(name)
    for other, name in _ABOVE_MODELS.items():
        if kind in (None, other):
            _import_once(name)


def _import_once(name: str) -> None:
    if name in _imported:
        return
    _imported.add(name)
    try:
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(getattr(package, "__path__", ()), prefix=f"{name}."):
            importlib.import_module(module.name)
    except BaseException:
        _imported.discard(name)
        raise
