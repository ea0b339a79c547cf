"""Merge defaults, YAML files and flags into one checked configuration.

Order: defaults, files in the order given, flags. Everything is checked before anything is
reported, so that one run of the command shows all that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fpmace import registry
from fpmace.annotations import Mismatch, Options, check, convert, fits
from fpmace.config.aliases import ALIASES, FLAT
from fpmace.config.flags import parse_flags
from fpmace.config.initial import model_of_file, model_on_foundation
from fpmace.config.option import RunOption
from fpmace.config.resolve import complete
from fpmace.config.resolve_model import resolve_model
from fpmace.config.schema import OPTIONS, TrainConfig
from fpmace.config.write import to_yaml
from fpmace.config.yaml_file import YamlFile, read_text, read_yaml
from fpmace.data.keys import KEY_OPTIONS, heads_with_keys
from fpmace.errors import ConfigError, suggestion


class ConfigProblems(ConfigError):
    """Everything that is wrong with a configuration; one line per problem."""

    def __init__(self, problems: Sequence[str], sources: str) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            lines = [f"{index:>2}. {text}" for index, text in enumerate(self.problems, start=1)]
            head = f"{sources}: {len(lines)} problems, nothing was run"
            super().__init__("\n".join([head, *lines]))


@dataclass(frozen=True)
class ResolvedConfig:
    """A checked configuration and where each value came from.

    Attributes:
        config: the configuration, complete.
        origins: option -> ``default``, ``FILE:LINE`` or ``--flag``.
        notes: options that were given and do not hold, for the log.
    """

    config: TrainConfig
    origins: dict[str, str]
    notes: tuple[str, ...] = ()

    def to_yaml(self) -> str:
        """YAML that gives the same configuration when it is fed back."""
        return to_yaml(self.config, self.origins)


@dataclass
class Sources:
    """Values as given, before they are checked.

    Attributes:
        values: option -> value, the winning one.
        files: the YAML files read.
        file_of: option -> the file its value came from.
        flags: options given on the command line.
        problems: what is wrong so far.
        keys: property -> key of the file, from ``energy_key`` and the like.
        unread: a file or the command line could not be read, so that checking the rest would
            only complain about what stands there.
    """

    values: Options = field(default_factory=dict)
    files: list[YamlFile] = field(default_factory=list)
    file_of: dict[str, YamlFile] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    problems: list[ConfigError] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    unread: bool = False

    def origin(self, where: str) -> str:
        """Where the value at the dotted path came from."""
        name = where.split(".")[0]
        if name in self.flags:
            return f"--{name}"
        if name in self.file_of:
            return self.file_of[name].origin(where)
        return "given" if name in self.values else "default"

    def origin_of_model_option(self, option: str) -> str:
        """Where an option of the model came from, by whichever of its names it was given."""
        for flat, name in FLAT.items():
            if name == option and flat in self.values:
                return self.origin(flat)
        model = self.values.get("model")
        given = option == "type" or (isinstance(model, Mapping) and option in model)
        return self.origin(f"model.{option}") if given else "default"

    @property
    def what(self) -> str:
        """The files, or the command line, for the head of a report."""
        named = [item.path for item in self.files]
        return ", ".join(named) or ("command line" if self.flags else "configuration")

    def switch(self, name: str) -> bool:
        """Whether an option that is true or false was given as true."""
        try:
            return bool(convert(self.values.get(name, False), bool))
        except Mismatch:
            return False

    def raise_problems(self) -> None:
        """Report all problems found.

        Raises:
            ConfigProblems: if there are any.
        """
        if self.problems:
            lines = dict.fromkeys(self._line(item) for item in self.problems)
            raise ConfigProblems(list(lines), self.what)

    def _line(self, problem: ConfigError) -> str:
        if not problem.where:
            return problem.message
        origin = self.origin(problem.where)
        known = problem.where.split(".")[0] in OPTIONS and origin not in ("default", "given")
        return f"{problem.where}{f' ({origin})' if known else ''}: {problem.message}"


def load_config(argv: Sequence[str]) -> ResolvedConfig:
    """Read the command line and the files it names.

    Plugins are imported before the values are checked, so that parts they register are known.

    Raises:
        ConfigProblems: naming everything that is wrong, with file and line.
    """
    return check_sources(collect(argv))


def resolve(values: Mapping[str, object]) -> ResolvedConfig:
    """Check a configuration given as a mapping, as from a script or a test.

    Example:
        >>> resolve({"train_file": "water.xyz", "r_max": 4.0}).config.r_max
        4.0

    Raises:
        ConfigProblems: naming everything that is wrong.
    """
    sources = Sources()
    _take(sources, values)
    return check_sources(sources)


def collect(argv: Sequence[str]) -> Sources:
    """Read flags and files, and import plugins; complaints are kept in the result."""
    sources = Sources()
    try:
        texts, unknown = parse_flags(argv)
    except ConfigError as error:
        sources.problems.append(error)
        sources.unread = True
        return sources
    sources.problems += unknown
    for path in texts.get("config", ()):
        _read_file(sources, path)
    sources.flags |= set(texts)
    _take(sources, texts)
    return sources


def _read_file(sources: Sources, path: str) -> None:
    try:
        content = read_yaml(path)
    except ConfigError as error:
        sources.problems.append(error)
        sources.unread = True
        return
    sources.files.append(content)
    sources.file_of |= dict.fromkeys(content.values, content)
    _take(sources, content.values)


def _take(sources: Sources, given: Mapping[str, object]) -> None:
    """Take what one file, or the command line, gives; it wins over what came before."""
    sources.keys |= {KEY_OPTIONS[n]: str(given[n]) for n in KEY_OPTIONS if given.get(n)}
    given = {name: value for name, value in given.items() if name not in KEY_OPTIONS}
    for name in given:
        if name not in OPTIONS or (name == "config" and name not in sources.flags):
            where = name
            if name in sources.file_of:
                where = f"{name} ({sources.file_of[name].origin(name)})"
            text = f"unknown option{suggestion(name, OPTIONS)}"
            sources.problems.append(ConfigError(text, where=where))
    known = {name: value for name, value in given.items() if name in OPTIONS}
    if "model" in known:
        known["model"] = _read(sources, "model", known["model"])
    inside = known.get("model")
    before = sources.values.get("model")
    for flat, name in ALIASES.items():
        if isinstance(inside, Mapping) and name in inside:
            if flat in known and _read(sources, flat, known[flat]) != inside[name]:
                sources.problems.append(_twice(flat, name, known[flat], inside[name]))
            sources.values.pop(flat, None)
        elif flat in known and isinstance(before, Mapping) and name in before:
            before = {key: value for key, value in before.items() if key != name}
    sources.values |= {"model": before} if before is not None else {}
    sources.values |= known


def _read(sources: Sources, name: str, value: object) -> object:
    try:
        return read_text(value, OPTIONS[name].annotation)
    except ConfigError:
        return value  # reported when it is checked


def _twice(flat: str, name: str, value: object, inside: object) -> ConfigError:
    return ConfigError(
        f"is {value!r}, but model.{name}, another name for it, is {inside!r}; leave one out",
        where=flat,
    )


def import_plugins(sources: Sources) -> None:
    """Import what ``plugins`` names, and the installed plugins; complaints are kept."""
    try:
        registry.load_entry_points()
        registry.load_plugins(convert(sources.values.get("plugins", ()), str | tuple[str, ...]))
    except Mismatch:
        pass  # reported with the other values of the wrong type
    except ConfigError as error:
        sources.problems.append(error)


def check_sources(sources: Sources) -> ResolvedConfig:
    """Check everything and make the configuration.

    Raises:
        ConfigProblems: naming everything that is wrong.
    """
    if sources.unread:
        sources.raise_problems()
    import_plugins(sources)
    if sources.keys:
        heads = _read(sources, "heads", sources.values.get("heads"))
        sources.values["heads"] = heads_with_keys(heads, sources.keys)
    typed: Options = {}
    model: Options = {}
    for name, value in sources.values.items():
        if name == "model" or OPTIONS[name].model_option:
            model[name] = value
            continue
        try:
            typed[name] = check_value(OPTIONS[name], value)
        except ConfigError as error:
            sources.problems.append(error)
    notes: list[str] = []
    if start := typed.get("init_from"):
        try:
            options, notes = model_of_file(start, model)
            model = {"model": options}
        except ConfigError as error:
            sources.problems.append(error)
    from_file: list[str] = []
    if not start and (foundation := typed.get("foundation_model")):
        try:
            model, from_file, problems = model_on_foundation(foundation, model, typed)
            sources.problems += problems
        except ConfigError as error:
            sources.problems.append(error)
    typed["model"], problems = resolve_model(model)
    sources.problems += problems
    config, problems = complete(typed, wrong={item.where for item in sources.problems})
    sources.problems += problems
    sources.raise_problems()
    origins = {name: sources.origin(name) for name in OPTIONS}
    for name in config.model_options:
        origins[f"model.{name}"] = sources.origin_of_model_option(name)
        if name in from_file:
            origins[f"model.{name}"] = str(config.foundation_model)
    origins |= {
        flat: origins[f"model.{name}"]
        for flat, name in ALIASES.items()
        if f"model.{name}" in origins
    }
    return ResolvedConfig(config, origins, tuple(notes))


def check_value(item: RunOption, value: object) -> Any:
    """Bring one value into its type and check its range.

    Raises:
        ConfigError: if it does not fit.
    """
    if value in ("None", "null") and fits(None, item.annotation):
        return None
    if isinstance(value, str) and item.role.repeatable and not value.startswith("["):
        value = [value]
    try:
        value = read_text(value, item.annotation)
    except ConfigError as error:
        raise ConfigError(error.message, where=item.name) from error
    return check(value, item.annotation, where=item.name)
