"""The modules whose import registers the parts that come with fpmace."""

from __future__ import annotations

import importlib
import pkgutil

_PACKAGES = (
    "fpmace.blocks",
    "fpmace.models",
    "fpmace.scf.solvers",
    "fpmace.differentiation",
    "fpmace.density_modes",
    "fpmace.metrics",
    "fpmace.training",
)
_state = {"imported": False}


def import_builtin_parts() -> None:
    """Import every module of the packages that hold registered parts, once."""
    if _state["imported"]:
        return
    _state["imported"] = True
    try:
        for name in _PACKAGES:
            package = importlib.import_module(name)
            for module in pkgutil.iter_modules(package.__path__, prefix=f"{name}."):
                importlib.import_module(module.name)
    except BaseException:
        _state["imported"] = False
        raise
