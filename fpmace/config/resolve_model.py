"""The model of a configuration: its options under all their names, checked and completed."""

from __future__ import annotations

from collections.abc import Mapping

from e3nn.o3 import Irreps

from fpmace import registry
from fpmace.annotations import Options, check, fits
from fpmace.config.aliases import ALIASES, FLAT, SHORTHANDS, flat_options, training_default
from fpmace.config.yaml_file import read_text
from fpmace.errors import ConfigError, suggestion
from fpmace.part_entry import Entry, Option

DEFAULT_MODEL = "FixedPoint"
_DEFAULT_CHANNELS, _DEFAULT_ORDER = 32, 1
_OF_DATA = ("atomic_numbers", "atomic_energies", "avg_num_neighbors")
"""Required options of these names are filled in from the data, marked or not."""


def resolve_model(given: Mapping[str, object]) -> tuple[Options, list[ConfigError]]:
    """Make the complete ``{"type": name, ...}`` of a model.

    Options that only the data gives are left out of it.

    Args:
        given: ``model`` and flat options, as they were given.

    Returns:
        The model and everything that is wrong with it.
    """
    model = given.get("model", DEFAULT_MODEL)
    inside = dict(model) if isinstance(model, Mapping) else {"type": model}
    try:
        entry = _entry(inside)
    except ConfigError as error:
        return {"type": str(inside.get("type"))}, [error]
    resolver = _Resolver(entry)
    for name, value in inside.items():
        if name != "type":
            resolver.take(name, value, f"model.{name}")
    for flat, value in given.items():
        if flat != "model":
            resolver.take_flat(flat, value)
    return {"type": entry.name, **resolver.complete()}, resolver.problems


def fills_from_data(option: Option) -> bool:
    """Whether a training finds the value of an option that is left out in its data."""
    mark = option.from_data
    return (mark is not None and mark.by_default) or (option.required and option.name in _OF_DATA)


def _entry(inside: Options) -> Entry:
    if "type" not in inside:
        raise ConfigError(
            f"missing; give one of {', '.join(registry.names('model'))}", where="model.type"
        )
    where = "model" if len(inside) == 1 else "model.type"
    return registry.get("model", inside["type"], where=where)


class _Resolver:
    """Options of one model under construction."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.checked: Options = {}
        self.short: Options = {}
        self.places: dict[str, str] = {}
        self.problems: list[ConfigError] = []

    def take_flat(self, flat: str, value: object) -> None:
        """Take an option that was given outside ``model``."""
        declared = flat_options()[flat]
        if self.entry.option(FLAT[flat]) is not None:
            self.take(ALIASES.get(flat, flat), value, flat)
        elif not _is_default(declared, value):
            text = f"has no meaning for model '{self.entry.name}'; leave it out"
            self.problems.append(ConfigError(text, where=flat))

    def take(self, name: str, value: object, where: str) -> None:
        """Check one option and keep it."""
        self.places[name] = where
        try:
            if name in SHORTHANDS and self.entry.option("hidden_irreps") is not None:
                annotation = SHORTHANDS[name]
                self.short[name] = check(_read(value, annotation, where), annotation, where=where)
            else:
                self._take(name, value, where)
        except ConfigError as error:
            self.problems.append(error)

    def _take(self, name: str, value: object, where: str) -> None:
        option = self.entry.option(name)
        if option is None:
            known = [item.name for item in self.entry.options]
            other = suggestion(ALIASES.get(name, name), known)
            raise ConfigError(
                f"{self.entry.name} has no option {name!r}{other} (accepts: {', '.join(known)})",
                where=where,
            )
        if fills_from_data(option):
            if option.name in ("atomic_numbers", "atomic_energies"):
                raise ConfigError("comes from the training data; leave it out", where=where)
            if value in (None, "None") and not fits(None, option.annotation):
                return
        value = _read(value, option.annotation, where)
        if option.part_kind is None:
            self.checked[name] = check(value, option.annotation, where=where)
        else:
            self.checked[name] = registry.check_option(self.entry, name, value, where=where)

    def complete(self) -> Options:
        """All options, those included that follow from others."""
        if self.problems:
            return self.checked
        try:
            self._expand_shorthands()
            return registry.completed(self.entry, self.checked, default=_default)
        except ConfigError as error:
            name, _, rest = error.where.partition(".")
            place = self.places.get(name, f"model.{name}") + (f".{rest}" if rest else "")
            self.problems.append(ConfigError(error.message, where=place))
            return self.checked

    def _expand_shorthands(self) -> None:
        channels, max_L = self.short.get("num_channels"), self.short.get("max_L")
        if channels is None and max_L is None:
            return
        if "hidden_irreps" not in self.checked:
            n = _DEFAULT_CHANNELS if channels is None else channels
            orders = range((_DEFAULT_ORDER if max_L is None else max_L) + 1)
            terms = [f"{n}x{order}{'eo'[order % 2]}" for order in orders]
            self.checked["hidden_irreps"] = "+".join(terms)
        text = self.checked["hidden_irreps"]
        counts = {mul for mul, _ in Irreps(text)}
        for name, wanted, fitting in (
            ("num_channels", channels, counts == {channels}),
            ("max_L", max_L, Irreps(text).lmax == max_L),
        ):
            if wanted is not None and not fitting:
                raise ConfigError(
                    f"{wanted} contradicts hidden_irreps '{text}'; leave one out", where=name
                )


def _is_default(option: Option, value: object) -> bool:
    """Whether an option is given as if it were not."""
    try:
        value = check(_read(value, option.annotation, ""), option.annotation)
    except ConfigError:
        return False
    return value is None or bool(value == option.default)


def _read(value: object, annotation: object, where: str) -> object:
    try:
        return read_text(value, annotation)
    except ConfigError as error:
        raise ConfigError(error.message, where=where) from error


def _default(option: Option) -> object:
    """The default of an option in a training."""
    if not fills_from_data(option):
        return registry.default_of(option)
    word = training_default(option) if option.from_data else None
    return registry.LATER if word is None else word
