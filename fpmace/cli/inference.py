"""Flags of the commands that run models."""

from __future__ import annotations

import argparse
import logging
import sys
import typing

from fpmace.annotations import Doc, marker
from fpmace.calculators.inference import Inference
from fpmace.kernels.choice import KernelName


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Flags for the fields of :class:`~fpmace.calculators.inference.Inference`."""
    hints = typing.get_type_hints(Inference, include_extras=True)
    texts = {name: doc.text for name, hint in hints.items() if (doc := marker(hint, Doc))}
    group = parser.add_argument_group("Speed and memory")
    group.add_argument(
        "--kernels",
        choices=typing.get_args(KernelName),
        default=Inference.kernels,
        help=f"{texts['kernels']} [{Inference.kernels}]",
    )
    group.add_argument("--radial_tables", action="store_true", help=texts["radial_tables"])
    group.add_argument(
        "--edges_at_once",
        type=int,
        metavar="N",
        default=Inference.edges_at_once,
        help=f"{texts['edges_at_once']} [{Inference.edges_at_once}]",
    )


def inference_of(given: argparse.Namespace) -> Inference:
    """What the flags say; what the tables have as error is written to stderr.

    Raises:
        ConfigError: a value is out of range.
    """
    if given.radial_tables:
        shown = logging.getLogger("fpmace.calculators.inference")
        shown.setLevel(logging.INFO)
        shown.addHandler(logging.StreamHandler(sys.stderr))
    return Inference(
        kernels=given.kernels,
        radial_tables=given.radial_tables,
        edges_at_once=given.edges_at_once,
    )
