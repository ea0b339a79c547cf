"""Keywords of calculators: names of other codes that mean the same, and those nobody knows."""

from __future__ import annotations

import inspect

from ase.calculators.calculator import Calculator

from fpmace.annotations import Options
from fpmace.errors import ConfigError, suggestion

_ALIASES = {"model_paths": "model_path", "models": "model_path", "default_dtype": "dtype"}
"""Names in mace-torch."""

_OF_ASE = frozenset({"atoms", "directory", "label"})


def take_aliases(given: Options, known: Options) -> Options:
    """``known`` options, completed by those of ``given`` that are other names of them.

    Raises:
        ConfigError: an option given twice, several models, or no model at all.
    """
    found = dict(known)
    for alias, name in _ALIASES.items():
        if alias not in given:
            continue
        value = given[alias]
        if found[name] is not None:
            raise ConfigError(f"is another name of {name}, which is given too", where=alias)
        if name == "model_path" and isinstance(value, list | tuple):
            if len(value) != 1:
                raise ConfigError(f"{len(value)} models given; a calculator runs one", where=alias)
            value = value[0]
        found[name] = value or None
    if found["model_path"] is None:
        raise ConfigError("missing; give a model file or a model", where="model_path")
    return found


def options_of_ase(given: Options, calculator: type[Calculator]) -> Options:
    """The keywords that ASE's own constructor takes.

    Raises:
        ConfigError: a keyword that neither the calculator nor ASE has, with the closest name.
    """
    known: set[str] = set()
    for kind in calculator.__mro__:
        if kind is Calculator:
            break
        known |= set(inspect.signature(kind).parameters) - {"options", "more"}
    aliases = set(_ALIASES) if "model_path" in known else set()
    known |= aliases | _OF_ASE
    for name in given:
        if name not in _OF_ASE | aliases:
            raise ConfigError(
                f"{calculator.__name__} has no such option{suggestion(name, sorted(known))} "
                f"(known: {', '.join(sorted(known))})",
                where=name,
            )
    return {name: value for name, value in given.items() if name in _OF_ASE}
