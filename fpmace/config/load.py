"""Merge defaults, YAML files and flags into one checked configuration.

Order: defaults, files in the order given, flags. Everything is checked before anything is
reported, so that one run of the command shows all that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fpmace import registry
from fpmace.annotations import Mismatch, convert, mismatch_text
from fpmace.config.flags import parse_flags, value_of_text
from fpmace.config.option import Option
from fpmace.config.resolve import complete
from fpmace.config.schema import OPTIONS, TrainConfig
from fpmace.config.write import to_yaml
from fpmace.config.yaml_file import YamlFile, read_yaml
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
    """

    config: TrainConfig
    origins: dict[str, str]

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
        unread: a file or the command line could not be read, so that checking the rest would
            only complain about what stands there.
    """

    values: dict[str, Any] = field(default_factory=dict)
    files: list[YamlFile] = field(default_factory=list)
    file_of: dict[str, YamlFile] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    problems: list[ConfigError] = field(default_factory=list)
    unread: bool = False

    def origin(self, where: str) -> str:
        """Where the value at the dotted path came from."""
        name = where.split(".")[0]
        if name in self.flags:
            return f"--{name}"
        if name in self.file_of:
            return self.file_of[name].origin(where)
        return "given" if name in self.values else "default"

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
            raise ConfigProblems([self._line(item) for item in self.problems], self.what)

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


def resolve(values: Mapping[str, Any]) -> ResolvedConfig:
    """Check a configuration given as a mapping, as from a script or a test.

    Example:
        >>> resolve({"train_file": "water.xyz", "r_max": 4.0}).config.r_max
        4.0

    Raises:
        ConfigProblems: naming everything that is wrong.
    """
    sources = Sources()
    for name, value in values.items():
        _take(sources, str(name), value)
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
    for name, text in texts.items():
        sources.flags.add(name)
        try:
            sources.values[name] = value_of_text(OPTIONS[name], text)
        except ConfigError as error:
            sources.problems.append(error)
    return sources


def _read_file(sources: Sources, path: str) -> None:
    try:
        content = read_yaml(path)
    except ConfigError as error:
        sources.problems.append(error)
        sources.unread = True
        return
    sources.files.append(content)
    for name, value in content.values.items():
        sources.file_of[name] = content
        _take(sources, name, value)


def _take(sources: Sources, name: str, value: Any) -> None:
    if name in OPTIONS and name != "config":
        sources.values[name] = value
        return
    where = name
    if name in sources.file_of:
        where = f"{name} ({sources.file_of[name].origin(name)})"
    sources.problems.append(ConfigError(f"unknown option{suggestion(name, OPTIONS)}", where=where))


def import_plugins(sources: Sources) -> None:
    """Import what ``plugins`` names, and the installed plugins; complaints are kept."""
    try:
        registry.load_entry_points()
        registry.load_plugins(convert(sources.values.get("plugins", ()), tuple[str, ...]))
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
    typed: dict[str, Any] = {}
    for name, value in sources.values.items():
        try:
            typed[name] = check_value(OPTIONS[name], value)
        except ConfigError as error:
            sources.problems.append(error)
    config, problems = complete(typed, wrong={item.where for item in sources.problems})
    sources.problems += problems
    sources.raise_problems()
    origins = {name: sources.origin(name) for name in OPTIONS}
    return ResolvedConfig(config, origins)


def check_value(item: Option, value: Any) -> Any:
    """Bring one value into its type and check its range.

    Raises:
        ConfigError: if it does not fit.
    """
    if isinstance(value, str) and item.name == "plugins":
        value = [value]
    try:
        result = convert(value, item.annotation)
    except Mismatch:
        hint = ""
        if isinstance(value, str):
            hint = suggestion(value, _literals(item))
        raise ConfigError(mismatch_text(value, item.annotation) + hint, where=item.name) from None
    for number in _numbers(result):
        _check_range(item, number)
    return result


def _literals(item: Option) -> list[str]:
    return [part.strip("'") for part in item.type_name.split(" or ") if part.startswith("'")]


def _numbers(value: Any) -> list[float]:
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def _check_range(item: Option, value: float) -> None:
    meta = item.meta
    bounds = [
        (meta.minimum is None or value >= meta.minimum, f"at least {meta.minimum:g}")
        if meta.minimum is not None
        else (True, ""),
        (value > meta.above, f"above {meta.above:g}") if meta.above is not None else (True, ""),
        (value < meta.below, f"below {meta.below:g}") if meta.below is not None else (True, ""),
        (value == value and abs(value) != float("inf"), "finite"),
    ]
    if not all(holds for holds, _ in bounds):
        wanted = " and ".join(text for _, text in bounds[:3] if text) or "finite"
        raise ConfigError(f"expects a number {wanted}, got {value:g}", where=item.name)
