"""Command-line flags, made from the schema."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from fpmace import __version__
from fpmace.annotations import Options, type_name
from fpmace.config.option import RunOption
from fpmace.config.schema import OPTIONS
from fpmace.data.keys import KEY_OPTIONS, PROPERTIES
from fpmace.errors import ConfigError, closest

_DESCRIPTION = """\
Train a model. Every option below can also stand in a YAML file given by --config, without the
dashes; flags win over files. Lists and mappings are written as YAML: "[1.5, 3.0]", "{1: -13.6}".
"""
_EPILOG = (
    "Reference of all options and parts: docs/reference.md; of the parts alone: --list-blocks."
)


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the whole usage for a mistyped flag."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(" ".join(message.split()), where="command line")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Flag on one line, text below it, so that long flags read well."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=6, width=96)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width)


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of ``fpmace-train``; values stay text until :func:`value_of_text`."""
    parser = _Parser(
        prog="fpmace-train",
        usage="fpmace-train [--config FILE ...] [--OPTION VALUE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fpmace {__version__}")
    groups: Options = {}
    for item in OPTIONS.values():
        if item.group not in groups:
            groups[item.group] = parser.add_argument_group(item.group)
        _add(groups[item.group], item)
    add_key_flags(parser)
    return parser


def add_key_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--energy_key`` and the like, short for entries of ``heads``."""
    group = parser.add_argument_group("Keys of the data, short for heads")
    for flag, name in KEY_OPTIONS.items():
        item = PROPERTIES[name]
        text = f"{item.meaning} [{item.key}]"
        group.add_argument(f"--{flag}", default=argparse.SUPPRESS, metavar="KEY", help=text)


def _add(group: argparse._ArgumentGroup, item: RunOption) -> None:
    flags = [item.flag]
    if item.name == "list_blocks":
        flags.append("--list-blocks")
    common: Options = {
        "dest": item.name,
        "default": argparse.SUPPRESS,
        "help": _help(item).replace("%", "%%"),
    }
    if item.is_switch:
        group.add_argument(*flags, nargs="?", const="true", metavar="true|false", **common)
    elif item.role.repeatable:
        group.add_argument(*flags, nargs="+", action="extend", metavar=_metavar(item), **common)
    else:
        group.add_argument(*flags, metavar=_metavar(item), **common)


def _metavar(item: RunOption) -> str:
    name = type_name(item.annotation)
    if item.part_kind:
        return "NAME"
    if item.name.endswith("file") or item.name in (
        "config",
        "plugins",
        "foundation_model",
        "init_from",
    ):
        return "FILE"
    if name.startswith("'") and " list" not in name and " mapping" not in name:
        return name.replace("'", "").replace(" or ", "|")
    first = name.removesuffix(" or None").split(" ")[0]
    return {
        "text": "TEXT",
        "whole": "N",
        "number": "X",
        "list": "LIST",
        "mapping": "MAPPING",
    }.get(first, "VALUE")


def _help(item: RunOption) -> str:
    return item.meaning + (f" [{default_text(item)}]" if default_text(item) else "")


def default_text(item: RunOption) -> str:
    """The default as a user would write it; empty where there is none to show."""
    value = item.default
    if value is None or value in ((), {}) or (item.is_switch and item.role.action):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return str(value)


def parse_flags(argv: Sequence[str]) -> tuple[Options, list[ConfigError]]:
    """Split the command line into text by option name, and complaints about unknown flags.

    Raises:
        ConfigError: for a flag without its value, or another malformed command line.
    """
    known, rest = make_parser().parse_known_args([_underscored(item) for item in argv])
    return vars(known), [_unknown(item) for item in rest if _is_unknown(item, rest)]


def _underscored(argument: str) -> str:
    """``--list-blocks`` and ``--list_blocks`` are one flag."""
    if not argument.startswith("--"):
        return argument
    name, separator, value = argument[2:].partition("=")
    return "--" + name.replace("-", "_") + separator + value


def _is_unknown(item: str, rest: Sequence[str]) -> bool:
    """The value that follows an unknown flag is not a complaint of its own."""
    position = list(rest).index(item)
    return item.startswith("--") or position == 0 or not rest[position - 1].startswith("--")


def _unknown(item: str) -> ConfigError:
    if not item.startswith("--"):
        return ConfigError(
            f"unexpected argument {item!r}; quote values that hold spaces", where="command line"
        )
    name = item[2:].split("=")[0]
    match = closest(name, OPTIONS)
    hint = f"; did you mean '--{match}'?" if match else ""
    return ConfigError(f"unknown flag{hint} (fpmace-train --help lists all)", where=f"--{name}")
