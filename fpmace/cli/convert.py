"""``fpmace-convert INPUT OUTPUT``: turn a model of mace-torch or mace-scf into one of fpmace."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from ase.data import chemical_symbols

from fpmace import __version__
from fpmace.cli.common import Parser, run_command
from fpmace.conversion.convert import Conversion, convert_file
from fpmace.conversion.report import report_lines, summary
from fpmace.conversion.safe_archive import read_foreign_archive
from fpmace.errors import ConfigError
from fpmace.files import atomic_write, check_output
from fpmace.models.base import Model
from fpmace.models.heads import of_one_head
from fpmace.models.io import FORMAT, describe_model, load_model, save_model

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one file as the command line says; return the exit status."""
    return run_command(lambda: _convert(make_parser().parse_args(argv)))


def make_parser() -> Parser:
    """Build the parser."""
    parser = Parser(
        prog="fpmace-convert",
        description="Turn a model file of mace-torch (MACE, ScaleShiftMACE) or mace-scf "
        "(FixedPointCore) into a model file of fpmace. Neither package is needed and no code "
        "from the file is run.",
    )
    parser.add_argument("--version", action="version", version=f"fpmace {__version__}")
    parser.add_argument("input", metavar="INPUT", help="the model file, as saved by torch.save")
    parser.add_argument("output", metavar="OUTPUT", help="the model file to write")
    parser.add_argument(
        "--dtype", choices=list(_DTYPES), help="precision of the weights; that of INPUT by default"
    )
    parser.add_argument(
        "--report", metavar="FILE", help="also write the fate of every entry to this file"
    )
    parser.add_argument(
        "--head", metavar="NAME", help="keep this head alone; INPUT may be a model of fpmace then"
    )
    parser.add_argument("--plugins", nargs="+", default=[], metavar="FILE", help="parts to import")
    parser.add_argument("--quiet", action="store_true", help="print the summary only")
    return parser


def _convert(arguments: argparse.Namespace) -> int:
    check_output(arguments.output, [arguments.input], where="OUTPUT")
    if arguments.report:
        inputs = [arguments.input, arguments.output]
        check_output(arguments.report, inputs, where="--report")
    content = read_foreign_archive(arguments.input)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return _extract(arguments)
    conversion = convert_file(arguments.input)
    if arguments.head is not None:
        assert isinstance(conversion.model, Model)
        conversion = replace(conversion, model=of_one_head(conversion.model, arguments.head))
    dtype = _DTYPES.get(arguments.dtype)
    if dtype is not None:
        conversion.model.to(dtype=dtype)
    lines = report_lines(conversion.report)
    if arguments.report:
        with atomic_write(arguments.report) as temporary:
            temporary.write_text("\n".join([*lines, "", *summary(conversion.report)]) + "\n")
    save_model(arguments.output, conversion.model, _metadata(conversion, arguments.input))
    if not arguments.quiet:
        print("\n".join(lines) + "\n")
    print("\n".join(summary(conversion.report)))
    _describe(conversion, arguments.output)
    return 0


def _extract(arguments: argparse.Namespace) -> int:
    """Write one head of a model of fpmace to a file of its own."""
    if arguments.head is None:
        raise ConfigError(
            f"{arguments.input} is a model of fpmace already; --head NAME takes one of its heads",
            where="INPUT",
        )
    model = of_one_head(load_model(arguments.input, plugins=arguments.plugins), arguments.head)
    model.to(dtype=_DTYPES.get(arguments.dtype))
    own = describe_model(model)
    save_model(arguments.output, model, {n: v for n, v in model.metadata.items() if n not in own})
    print(f"head {arguments.head} of {arguments.input}\nsaved model: {arguments.output}")
    return 0


def _metadata(conversion: Conversion, source: str) -> dict[str, object]:
    event = {
        "name": "converted",
        "from_file": Path(source).name,
        "from_class": conversion.source_class,
        "by_fpmace": __version__,
    }
    return {"history": [event], "notes": conversion.notes}


def _describe(conversion: Conversion, output: str) -> None:
    config = conversion.config
    elements = [chemical_symbols[number] for number in config["atomic_numbers"]]
    print(f"\n{conversion.source_class} is now {config['type']}")
    text = {"elements": elements, **{k: v for k, v in config.items() if k not in _DESCRIBED}}
    print(yaml.safe_dump(text, sort_keys=False, default_flow_style=None, width=96).rstrip())
    for note in conversion.notes:
        print(f"note: {note}")
    print(f"saved model: {output}")


_DESCRIBED = ("type", "atomic_numbers")

if __name__ == "__main__":
    sys.exit(main())
