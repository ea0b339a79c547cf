"""What the commands that plot runs share: arguments, reading, where the plot goes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fpmace import __version__
from fpmace.cli.common import Parser
from fpmace.errors import ConfigError
from fpmace.files import check_output
from fpmace.plots.run_records import ENDING, Run, read_runs

FORMATS = (".png", ".pdf", ".svg")


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the arguments of both commands."""
    parser = Parser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fpmace {__version__}")
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help=f"*{ENDING} of a run, finished or going on, or its work_dir; several are overlaid",
    )
    parser.add_argument("--output", metavar="FILE", help="the plot: .png, .pdf or .svg")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="legend, one per run")
    return parser


def read_and_report(arguments: argparse.Namespace) -> list[Run]:
    """Read the runs and print a line on each.

    Raises:
        DataError: a file is not a metrics file with at least one epoch.
    """
    runs = read_runs(arguments.runs, arguments.labels)
    for run in runs:
        print(run)
    return runs


def output_path(arguments: argparse.Namespace, runs: Sequence[Run], ending: str) -> Path:
    """The file given by ``--output``, or one beside the first metrics file.

    Raises:
        ConfigError: for an unknown format.
    """
    if arguments.output is None:
        first = runs[0].path
        return first.with_name(first.name.removesuffix(".jsonl").removesuffix("_metrics") + ending)
    path = Path(arguments.output)
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"{path}: unknown format '{path.suffix}', use {', '.join(FORMATS)}", where="--output"
        )
    check_output(path, [run.path for run in runs], where="--output")
    return path
