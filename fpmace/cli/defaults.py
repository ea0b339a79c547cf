"""Flags that stand for inputs which a structure lacks."""

from __future__ import annotations

import argparse

from fpmace.config.schema import OPTIONS
from fpmace.data.options import DEFAULT_INPUTS, chosen_defaults


def add_defaults(parser: argparse.ArgumentParser) -> None:
    """Add ``--default_total_charge`` and the like, as ``fpmace-train`` has them."""
    for name in DEFAULT_INPUTS:
        item = OPTIONS[f"default_{name}"]
        parser.add_argument(item.flag, type=float, metavar="NUMBER", help=item.meaning)


def given_defaults(arguments: argparse.Namespace) -> dict[str, float]:
    """``DataOptions.defaults`` from the flags of :func:`add_defaults`.

    Raises:
        ConfigError: for a spin below 1.
    """
    return chosen_defaults(arguments.default_total_charge, arguments.default_total_spin)
