"""The registry: string names to the parts a model or a training run is built from.

A part is added by one decorator per kind and built from ``{"type": "Name", ...options}``::

    @register_update_rule("MyRule")
    class MyRule(UpdateRule):
        '''One line that --list-blocks prints.'''
        def __init__(self, *, scale: float = 1.0, node_irreps, density_irreps, ...): ...

Constructor parameters are keyword-only. Those named in ``Kind.context`` are handed in by the
model (context); all others are the user's options and carry an annotation. An option annotated
``Annotated[PartConfig, Part("kind")]`` names a part of another kind: a name or a dict with
``type``; the constructor receives it as a checked dict and passes it to :func:`build`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fpmace.annotations import fits, mismatch_text
from fpmace.errors import ConfigError, RegistryError, suggestion
from fpmace.part_entry import (
    Entry,
    Option,
    Part,
    PartConfig,
    has_runtime_inputs,
    is_builtin,
    make_entry,
)

__all__ = [
    "Entry",
    "Kind",
    "Option",
    "Part",
    "PartConfig",
    "build",
    "declare_kind",
    "describe",
    "get",
    "get_kind",
    "kinds",
    "load_entry_points",
    "load_plugins",
    "names",
    "normalise",
    "register",
    "register_differentiation",
    "register_error_table",
    "register_field_mixer",
    "register_field_readout",
    "register_interaction",
    "register_local_density_readout",
    "register_loss",
    "register_model",
    "register_nonlinearity",
    "register_optimizer",
    "register_potential_embedding",
    "register_radial_basis",
    "register_scf_solver",
    "register_training_mode",
    "register_update_rule",
    "set_base",
    "unregister",
    "used_parts",
]

T = TypeVar("T")


@dataclass
class Kind:
    """A family of interchangeable parts and the context names its builders provide."""

    name: str
    what: str
    context: frozenset[str]
    base: type | None = None
    entries: dict[str, Entry] = field(default_factory=dict)


_kinds: dict[str, Kind] = {}
_current_plugin: list[str] = []


def declare_kind(name: str, what: str, context: Iterable[str] = ()) -> Kind:
    """Declare a kind of part; ``context`` are the constructor arguments that are not options.

    Raises:
        RegistryError: if the kind exists.
    """
    if name in _kinds:
        raise RegistryError(f"the kind '{name}' is declared already")
    _kinds[name] = Kind(name, what, frozenset(context))
    return _kinds[name]


def kinds() -> tuple[Kind, ...]:
    return tuple(_kinds.values())


def get_kind(name: str) -> Kind:
    """Look a kind up by its name.

    Raises:
        RegistryError: naming the closest match and every known kind.
    """
    if name not in _kinds:
        known = list(_kinds)
        raise RegistryError(
            f"no kind of part '{name}'{suggestion(name, known)} (known: {', '.join(known)})"
        )
    return _kinds[name]


def set_base(kind: str, base: type) -> None:
    """Demand that classes registered under ``kind`` derive from ``base``."""
    get_kind(kind).base = base


def register(kind: str, name: str, *, override: bool = False) -> Callable[[T], T]:
    """Return a decorator that registers a class or function as ``name`` under ``kind``.

    Raises:
        RegistryError: if the name is taken and ``override`` is false, if a class does not derive
            from the kind's base, or if an option is positional, has no annotation or a default
            of the wrong type.
    """

    def decorate(target: T) -> T:
        family = get_kind(kind)
        if not isinstance(name, str) or not name:
            raise RegistryError(
                f"{kind}: the decorator needs a name, as in @register_{kind}('MyPart')"
            )
        if not is_builtin(getattr(target, "__module__", "")):
            _import_builtin_parts()
        taken = family.entries.get(name)
        if taken is not None and not override:
            raise RegistryError(
                f"{kind} '{name}' is registered already by {taken.module}; "
                "choose another name or pass override=True"
            )
        if family.base is not None and not (
            isinstance(target, type) and issubclass(target, family.base)
        ):
            raise RegistryError(
                f"{kind} '{name}' must be a class derived from "
                f"{family.base.__module__}.{family.base.__qualname__}"
            )
        if not callable(target):
            raise RegistryError(f"{kind} '{name}' must be a class or a function")
        plugin = _current_plugin[-1] if _current_plugin else None
        entry = make_entry(kind, name, target, context_names=family.context, plugin=plugin)
        for option in entry.options:
            if option.part_kind is not None:
                get_kind(option.part_kind)
        family.entries[name] = entry
        return target

    return decorate


def unregister(kind: str, name: str) -> None:
    """Remove a part again (for tests and notebooks)."""
    get_kind(kind).entries.pop(name, None)


def get(kind: str, name: str, *, where: str = "") -> Entry:
    """Look a name up.

    Raises:
        RegistryError: naming the closest match and every known name.
    """
    family = get_kind(kind)
    if name not in family.entries:
        _import_builtin_parts()
    if name not in family.entries:
        known = sorted(family.entries)
        raise RegistryError(
            f"no {family.what} named {name!r}{suggestion(str(name), known)} "
            f"(known: {', '.join(known) or 'none'})",
            where=where,
        )
    return family.entries[name]


def names(kind: str) -> list[str]:
    """All names of a kind, sorted."""
    return [item.name for item in describe(kind)]


def describe(kind: str) -> list[Entry]:
    """All entries of a kind, sorted by name."""
    entries = get_kind(kind).entries
    _import_builtin_parts()
    return [entries[name] for name in sorted(entries)]


def normalise(kind: str, config: PartConfig, *, where: str = "") -> dict[str, Any]:
    """Check a part's configuration, nested parts included; return it with ``type`` and defaults.

    Raises:
        ConfigError: for a wrong shape, an unknown, missing or ill-typed option.
        RegistryError: for an unknown name.
    """
    where = where or kind
    given = _as_dict(kind, config, where)
    entry = get(kind, given.pop("type"), where=f"{where}.type")
    accepted = [item.name for item in entry.options]
    for name in given:
        if name not in accepted:
            raise ConfigError(
                f"{entry.name} has no option {name!r}{suggestion(str(name), accepted)} "
                f"(accepts: {_option_list(entry)})",
                where=f"{where}.{name}",
            )
    result: dict[str, Any] = {"type": entry.name}
    for option in entry.options:
        result[option.name] = _checked_value(entry, option, given, where)
    return result


def _checked_value(entry: Entry, option: Option, given: Mapping[str, Any], where: str) -> Any:
    place = f"{where}.{option.name}"
    if option.name not in given:
        if option.required:
            raise ConfigError(
                f"{entry.name} needs the option '{option.name}' (accepts: {_option_list(entry)})",
                where=place,
            )
        value = option.default
    else:
        value = given[option.name]
    if option.part_kind is not None:
        if value is None and fits(None, option.annotation):
            return None
        return normalise(option.part_kind, value, where=place)
    if option.name in given and not fits(value, option.annotation):
        raise ConfigError(
            f"{entry.name} {mismatch_text(value, option.annotation)} "
            f"(accepts: {_option_list(entry)})",
            where=place,
        )
    return value


def build(kind: str, config: PartConfig, *, where: str = "", **context: Any) -> Any:
    """Build a part from ``{"type": "Name", ...options}`` (or just a name).

    ``context`` are the values that the surrounding model provides; a constructor receives those
    it asks for. A class is instantiated; a function without positional parameters is called; one
    with positional parameters is returned with its options filled in.

    Raises:
        ConfigError, RegistryError: see :func:`normalise`.
    """
    options = normalise(kind, config, where=where)
    entry = get(kind, options.pop("type"))
    missing = [name for name in entry.required_context if name not in context]
    if missing:
        raise ConfigError(
            f"{entry.name} needs {', '.join(missing)}, which is not available here",
            where=where or kind,
        )
    passed = {name: context[name] for name in entry.context if name in context}
    if has_runtime_inputs(entry.target):
        return functools.partial(entry.target, **options, **passed)
    return entry.target(**options, **passed)


def used_parts(kind: str, config: PartConfig) -> list[Entry]:
    """List the entries that a configuration names, nested ones included."""
    options = normalise(kind, config)
    entry = get(kind, options.pop("type"))
    found = [entry]
    for option in entry.options:
        value = options.get(option.name)
        if option.part_kind is not None and value is not None:
            found += used_parts(option.part_kind, value)
    return found


def load_plugins(sources: Iterable[str]) -> None:
    """Import user modules (a path to a ``.py`` file or an importable name), once each.

    Raises:
        ConfigError: if a file or module does not exist or fails to import; what it had
            registered until then is removed again.
    """
    for source in sources:
        _import_plugin(source)


def load_entry_points() -> None:
    """Import every module that an installed package lists under ``fpmace.plugins``."""
    for point in importlib.metadata.entry_points(group="fpmace.plugins"):
        _import_plugin(point.module)


def _import_plugin(source: str) -> None:
    path = Path(source).expanduser()
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise ConfigError(f"no such file '{source}'", where="plugins")
    module_name = _file_module_name(path) if is_file else source
    if module_name in sys.modules:
        return
    _import_builtin_parts()
    before = {kind.name: dict(kind.entries) for kind in kinds()}
    _current_plugin.append(str(path.resolve()) if is_file else source)
    try:
        if is_file:
            _import_file(module_name, path)
        else:
            importlib.import_module(module_name)
    except Exception as error:
        sys.modules.pop(module_name, None)
        for kind in kinds():
            kind.entries = before.get(kind.name, kind.entries)
        raise ConfigError(
            f"importing '{source}' failed: {type(error).__name__}: {error}", where="plugins"
        ) from error
    finally:
        _current_plugin.pop()


def _file_module_name(path: Path) -> str:
    """A module name that is the same in every process, so that pickled objects find it again."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    return f"fpmace_plugin_{path.stem}_{digest}"


def _import_file(module_name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)


def _import_builtin_parts() -> None:
    """Make sure that the package's own parts are registered.

    Called on look-up rather than on ``import fpmace.registry``: the parts import this module.
    """
    from fpmace.parts import import_builtin_parts

    import_builtin_parts()


def _as_dict(kind: str, config: PartConfig, where: str) -> dict[str, Any]:
    if isinstance(config, str):
        return {"type": config}
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"expected a name or a mapping with 'type', got {config!r} "
            f"(known: {', '.join(names(kind))})",
            where=where,
        )
    if "type" not in config:
        raise ConfigError(f"missing; give one of {', '.join(names(kind))}", where=f"{where}.type")
    return dict(config)


def _option_list(entry: Entry) -> str:
    return "; ".join(item.describe() for item in entry.options) or "no options"


_BLOCK_CONTEXT = (
    "node_irreps",
    "density_irreps",
    "field_irreps",
    "edge_irreps",
    "n_elements",
    "n_edge_features",
    "avg_num_neighbors",
    "radial_MLP",
    "readout_irreps",
    "is_last_layer",
)

declare_kind("model", "model", ())
declare_kind(
    "interaction",
    "interaction block",
    (
        "node_irreps",
        "edge_irreps",
        "target_irreps",
        "hidden_irreps",
        "n_elements",
        "n_edge_features",
        "avg_num_neighbors",
        "radial_MLP",
        "fused",
    ),
)
declare_kind("radial_basis", "radial basis", ("r_max", "n_basis"))
declare_kind("update_rule", "update rule", _BLOCK_CONTEXT)
declare_kind("potential_embedding", "potential embedding", _BLOCK_CONTEXT)
declare_kind("nonlinearity", "nonlinearity", ("n_scalars",))
declare_kind("field_mixer", "field mixer", (*_BLOCK_CONTEXT, "mixed_irreps", "target_irreps"))
declare_kind("field_readout", "field-energy readout", _BLOCK_CONTEXT)
declare_kind(
    "local_density_readout",
    "local density readout",
    (*_BLOCK_CONTEXT, "density_scale", "gate"),
)
declare_kind("loss", "loss", ("weight",))
declare_kind("training_mode", "training mode", ("scf", "loss_outputs"))
declare_kind("scf_solver", "SCF solver", ())
declare_kind("differentiation", "differentiation", ())
declare_kind("optimizer", "optimizer", ("parameter_groups", "lr"))
declare_kind("error_table", "error table", ())


def _decorator(kind: str) -> Callable[..., Callable[[T], T]]:
    def named(name: str, *, override: bool = False) -> Callable[[T], T]:
        return register(kind, name, override=override)

    named.__name__ = f"register_{kind}"
    named.__doc__ = f"Register a class or function as a {get_kind(kind).what}."
    return named


register_model = _decorator("model")
register_interaction = _decorator("interaction")
register_radial_basis = _decorator("radial_basis")
register_update_rule = _decorator("update_rule")
register_potential_embedding = _decorator("potential_embedding")
register_nonlinearity = _decorator("nonlinearity")
register_field_mixer = _decorator("field_mixer")
register_field_readout = _decorator("field_readout")
register_local_density_readout = _decorator("local_density_readout")
register_loss = _decorator("loss")
register_training_mode = _decorator("training_mode")
register_scf_solver = _decorator("scf_solver")
register_differentiation = _decorator("differentiation")
register_optimizer = _decorator("optimizer")
register_error_table = _decorator("error_table")
