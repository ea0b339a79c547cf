"""The modules whose import registers the parts that come with fpmace."""

from __future__ import annotations

import importlib
import pkgutil

_PACKAGES = (
    "fpmace.blocks",
    "fpmace.models",
    "fpmace.scf.solvers",
    "fpmace.differentiation",
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
                _import_while_growing(module.name)
    except BaseException:
        _state["imported"] = False
        raise


def _import_while_growing(name: str) -> None:
    """Stand-in until every module exists: passes over modules whose imports are not written yet."""
    try:
        importlib.import_module(name)
    except (ImportError, NameError, SyntaxError) as error:
        if "fpmace" not in f"{error} {getattr(error, 'name', '')} {getattr(error, 'filename', '')}":
            raise
