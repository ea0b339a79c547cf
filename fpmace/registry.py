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
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from fpmace.annotations import Options, check, convert, fits, plain
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
    "LATER",
    "Entry",
    "Kind",
    "Option",
    "Part",
    "PartConfig",
    "build",
    "check_option",
    "checked_options",
    "completed",
    "declare_kind",
    "default_of",
    "describe",
    "get",
    "get_kind",
    "kinds",
    "load_entry_points",
    "load_plugins",
    "names",
    "normalise",
    "register",
    "register_bond_transfer",
    "register_density_mode",
    "register_differentiation",
    "register_distance_transform",
    "register_electrostatics",
    "register_error_table",
    "register_field_mixer",
    "register_field_readout",
    "register_interaction",
    "register_local_density_readout",
    "register_logger",
    "register_loss",
    "register_model",
    "register_nonlinearity",
    "register_optimizer",
    "register_oxidation_state_mixer",
    "register_pair_repulsion",
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
_MANY = 12
_MISSING: object = inspect.Parameter.empty
LATER: object = object()
"""Stands for an option that somebody else will give."""


@dataclass
class Kind:
    """A family of interchangeable parts and the context names its builders provide.

    Attributes:
        base: what a class of the kind derives from.
        keeps_config: its instances keep their ``config``, from which they can be built again.
    """

    name: str
    what: str
    context: frozenset[str]
    base: type | None = None
    keeps_config: bool = False
    entries: dict[str, Entry] = field(default_factory=dict)


_kinds: dict[str, Kind] = {}
_current_plugin: list[str] = []


def declare_kind(
    name: str, what: str, context: Iterable[str] = (), *, keeps_config: bool = False
) -> Kind:
    """Declare a kind of part; ``context`` are the constructor arguments that are not options.

    Raises:
        RegistryError: if the kind exists.
    """
    if name in _kinds:
        raise RegistryError(f"the kind '{name}' is declared already")
    _kinds[name] = Kind(name, what, frozenset(context), keeps_config=keeps_config)
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
            _import_builtin_parts(kind)
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
        if isinstance(target, type) and entry.options:
            _check_construction(target, entry, keep=family.keeps_config)
        family.entries[name] = entry
        return target

    return decorate


def _check_construction(target: type, entry: Entry, *, keep: bool) -> None:
    """Let the constructor take checked and completed options, whoever calls it.

    Args:
        keep: the outermost class keeps them in ``config``, from which :func:`build` makes its
            equal.
    """
    construct = target.__init__  # type: ignore[misc]
    names = {option.name for option in entry.options}

    @functools.wraps(construct)
    def checked(self: Any, *args: Any, **arguments: Any) -> None:
        given = {name: value for name, value in arguments.items() if name in names}
        others = {name: value for name, value in arguments.items() if name not in names}
        options = checked_options(entry, given)
        _refuse_missing_data(entry, options)
        if keep and "config" not in self.__dict__:
            object.__setattr__(self, "config", {"type": entry.name, **plain(options)})
        construct(self, *args, **options, **others)

    target.__init__ = checked  # type: ignore[misc]


def _refuse_missing_data(entry: Entry, options: Mapping[str, object]) -> None:
    """Refuse a value that stands for what a training finds in its data."""
    for option in entry.options:
        mark = option.from_data
        if mark is not None and mark.word is not None and options[option.name] == mark.word:
            raise ConfigError(
                f"{mark.word} stands for what a training finds in its data; give a value",
                where=option.name,
            )


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
        _import_builtin_parts(kind)
    if name not in family.entries:
        known = sorted(family.entries)
        raise RegistryError(
            f"no {family.what} named {name!r}{suggestion(str(name), known)} (known: "
            f"{', '.join(known) or 'none'}; one of your own: name its file with --plugins)",
            where=where,
        )
    return family.entries[name]


def names(kind: str) -> list[str]:
    """All names of a kind, sorted."""
    return [item.name for item in describe(kind)]


def describe(kind: str) -> list[Entry]:
    """All entries of a kind, sorted by name."""
    entries = get_kind(kind).entries
    _import_builtin_parts(kind)
    return [entries[name] for name in sorted(entries)]


def normalise(kind: str, config: PartConfig, *, where: str = "") -> Options:
    """Check a part's configuration, nested parts included; return it with ``type`` and defaults.

    Raises:
        ConfigError: for a wrong shape, an unknown, missing or ill-typed option.
        RegistryError: for an unknown name.
    """
    where = where or kind
    given = _as_dict(kind, config, where)
    entry = get(kind, given.pop("type"), where=f"{where}.type")
    return {"type": entry.name, **checked_options(entry, given, where=where)}


def checked_options(entry: Entry, given: Mapping[str, object], *, where: str = "") -> Options:
    """Check the given options of a part and fill in the others.

    A class may fill in options that follow from others, and refuse those that contradict each
    other, in a static or class method ``complete_options(given) -> options``. It gets the options
    that were given, checked one by one, and returns them with what follows from them; what it
    leaves out gets its default. A method ``check_options(options)`` refuses what does not fit
    together when all are there. Both are called for configurations and for constructors alike,
    and may be called with their own result.

    Raises:
        ConfigError: for an unknown, missing or ill-typed option, or a contradiction.
    """
    checked = {
        name: check_option(entry, name, value, where=_place(where, name))
        for name, value in given.items()
    }
    try:
        checked = completed(entry, checked)
    except ConfigError as error:
        raise ConfigError(error.message, where=_place(where, error.where)) from error
    return checked


def check_option(entry: Entry, name: str, value: object, *, where: str) -> Any:
    """Return the value of one option of a part in its type.

    Raises:
        ConfigError: if the part has no such option or the value does not fit it.
    """
    option = entry.option(name)
    if option is None:
        accepted = [item.name for item in entry.options]
        raise ConfigError(
            f"{entry.name} has no option {name!r}{suggestion(str(name), accepted)} "
            f"({_accepts(entry)})",
            where=where,
        )
    unset = value in (None, "None") and fits(None, option.annotation)
    if option.part_kind is not None and not unset:
        return normalise(option.part_kind, cast(PartConfig, value), where=where)
    try:
        return check(value, option.annotation, where=where, owner=entry.name)
    except ConfigError as error:
        raise ConfigError(f"{error.message} ({_accepts(entry)})", where=where) from None


def completed(
    entry: Entry,
    checked: Mapping[str, object],
    *,
    default: Callable[[Option], object] | None = None,
) -> Options:
    """Let the part complete checked options (see :func:`checked_options`), then fill in defaults.

    Args:
        default: the value of an option that is left out; :data:`LATER` to leave it out here too.

    Raises:
        ConfigError: led by the option's name.
    """
    found = dict(checked)
    complete = getattr(entry.target, "complete_options", None)
    if complete is not None:
        found = complete(found)
    result: Options = {}
    for option in entry.options:
        if option.name in found:
            result[option.name] = found.pop(option.name)
            continue
        value = (default or default_of)(option)
        if value is _MISSING:
            raise ConfigError(
                f"{entry.name} needs the option '{option.name}' ({_accepts(entry)})",
                where=option.name,
            )
        if value is not LATER:
            result[option.name] = value
    if hasattr(entry.target, "check_options"):
        entry.target.check_options(result)
    if found:
        raise RegistryError(f"{entry.name}.complete_options gave {', '.join(found)}, no options")
    return result


def default_of(option: Option) -> object:
    """The default of an option, the options of a part filled in; ``empty`` if it is required."""
    if option.required:
        return _MISSING
    if option.part_kind is not None and option.default is not None:
        return normalise(option.part_kind, option.default, where=option.name)
    return convert(option.default, option.annotation)


def _place(where: str, name: str) -> str:
    return f"{where}.{name}" if where and name else where or name


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

    A text alone is one of them.

    Raises:
        ConfigError: if a file or module does not exist or fails to import; what it had
            registered until then is removed again.
    """
    for source in [sources] if isinstance(sources, str) else sources:
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


def _import_builtin_parts(kind: str | None = None) -> None:
    """Make sure that the package's own parts are registered.

    Called on look-up rather than on ``import fpmace.registry``: the parts import this module.
    """
    from fpmace.parts import import_builtin_parts

    import_builtin_parts(kind)


def _as_dict(kind: str, config: PartConfig, where: str) -> Options:
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


def _accepts(entry: Entry) -> str:
    """The options of a part for a message; only their names where there are many."""
    listed = [item.describe() for item in entry.options]
    if len(listed) > _MANY:
        return f"accepts: {', '.join(item.name for item in entry.options)}"
    return f"accepts: {'; '.join(listed) or 'no options'}"


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

declare_kind("model", "model", (), keeps_config=True)
declare_kind(
    "interaction",
    "interaction block",
    (
        "node_irreps",
        "edge_irreps",
        "target_irreps",
        "hidden_irreps",
        "convolution_irreps",
        "n_elements",
        "n_edge_features",
        "avg_num_neighbors",
        "radial_MLP",
    ),
)
declare_kind("electrostatics", "electrostatics", ("options",))
declare_kind("radial_basis", "radial basis", ("r_max", "n_basis"))
declare_kind("distance_transform", "distance transform", ("atomic_numbers",))
declare_kind("pair_repulsion", "pair repulsion", ("atomic_numbers", "cutoff_power"))
declare_kind("update_rule", "update rule", _BLOCK_CONTEXT)
declare_kind("potential_embedding", "potential embedding", _BLOCK_CONTEXT)
declare_kind("nonlinearity", "nonlinearity", ("n_scalars",))
declare_kind("field_mixer", "field mixer", (*_BLOCK_CONTEXT, "mixed_irreps", "target_irreps"))
declare_kind("field_readout", "field-energy readout", (*_BLOCK_CONTEXT, "fermi_level_offset"))
declare_kind(
    "local_density_readout",
    "local density readout",
    (*_BLOCK_CONTEXT, "density_scale", "gate"),
)
declare_kind("bond_transfer", "charge transfer", ("node_irreps", "edge_irreps", "n_edge_features"))
declare_kind(
    "oxidation_state_mixer", "formal-charge mixer", ("n_channels", "oxidation_state_range")
)
declare_kind("loss", "loss", ("weight",))
declare_kind("training_mode", "density mode", ("scf", "loss_outputs"))
declare_kind("scf_solver", "SCF solver", ())
declare_kind("differentiation", "differentiation", ())
declare_kind("optimizer", "optimizer", ("parameter_groups", "lr"))
declare_kind("error_table", "error table", ())
declare_kind("logger", "logger of trainings", ("folder", "name"))


def _decorator(kind: str) -> Callable[..., Callable[[T], T]]:
    def named(name: str, *, override: bool = False) -> Callable[[T], T]:
        return register(kind, name, override=override)

    named.__name__ = f"register_{kind}"
    named.__doc__ = f"Register a class or function as a {get_kind(kind).what}."
    return named


register_model = _decorator("model")
register_electrostatics = _decorator("electrostatics")
register_interaction = _decorator("interaction")
register_radial_basis = _decorator("radial_basis")
register_distance_transform = _decorator("distance_transform")
register_pair_repulsion = _decorator("pair_repulsion")
register_update_rule = _decorator("update_rule")
register_potential_embedding = _decorator("potential_embedding")
register_nonlinearity = _decorator("nonlinearity")
register_field_mixer = _decorator("field_mixer")
register_field_readout = _decorator("field_readout")
register_bond_transfer = _decorator("bond_transfer")
register_oxidation_state_mixer = _decorator("oxidation_state_mixer")
register_local_density_readout = _decorator("local_density_readout")
register_loss = _decorator("loss")
register_density_mode = _decorator("training_mode")
register_training_mode = register_density_mode
"""Former name of :func:`register_density_mode`."""
register_scf_solver = _decorator("scf_solver")
register_differentiation = _decorator("differentiation")
register_optimizer = _decorator("optimizer")
register_error_table = _decorator("error_table")
register_logger = _decorator("logger")
