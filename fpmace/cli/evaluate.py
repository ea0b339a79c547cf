"""``fpmace-eval``: a model on the configurations of an extended XYZ file."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import NoReturn

from tqdm import tqdm

from fpmace import __version__
from fpmace.boundaries import PBC_METHODS
from fpmace.calculators.self_consistency import make_scf_options
from fpmace.cli.common import Parser, run_command
from fpmace.cli.defaults import add_defaults, given_defaults
from fpmace.cli.inference import add_inference, inference_of
from fpmace.config.yaml_file import is_file, parse_value, read_yaml
from fpmace.data.keys import PROPERTIES, KeyMapping
from fpmace.distributed.join import joined
from fpmace.distributed.process import Process
from fpmace.errors import ConfigError
from fpmace.evaluation.evaluate import EvaluationReport, evaluate_file
from fpmace.evaluation.options import HISTORIES, MODES, EvaluationOptions
from fpmace.scf.options import ScfOptions

_DESCRIPTION = """\
Evaluate a model on every configuration of an extended XYZ file and write the file again with the
predictions: PREFIXenergy, PREFIXforces, PREFIXdensity_coefficients and so on. Input and output
are read and written in a stream; the output takes its name when it is whole, and an interrupted
run is continued with --resume. Errors are shown where the file has labels.
"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of ``fpmace-eval``."""
    parser = Parser(
        prog="fpmace-eval",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fpmace {__version__}")
    parser.add_argument("--configs", required=True, metavar="FILE", help="extended XYZ file")
    parser.add_argument("--model", required=True, metavar="FILE", help="model file")
    parser.add_argument("--output", required=True, metavar="FILE", help="extended XYZ to write")
    parser.add_argument(
        "--head", metavar="NAME", help="head of the model [head=NAME of each configuration]"
    )
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="[8]")
    parser.add_argument(
        "--batch_budget",
        metavar="YAML",
        help="atoms or edges of a batch in place of batch_size, such as '{edges: 20000}'",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N [cpu]")
    parser.add_argument(
        "--default_dtype", choices=("float64", "float32"), help="[that of the model file]"
    )
    add_inference(parser)
    parser.add_argument("--plugins", nargs="+", default=[], metavar="FILE", help="parts to import")
    _add_scf(parser.add_argument_group("Self-consistency"))
    _add_keys(parser.add_argument_group("Keys of the file"))
    add_defaults(parser)
    _add_output(parser.add_argument_group("Output"))
    return parser


def _add_scf(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--mode",
        choices=MODES,
        help="scf: converged density; direct: one evaluation at the density of the file [scf]",
    )
    group.add_argument(
        "--scf_options",
        metavar="FILE|YAML",
        help="YAML file or text with settings of the loop, such as '{scf_tolerance: 1e-8}'",
    )
    group.add_argument("--initial_density", choices=("local_guess", "from_data", "zero"))
    group.add_argument(
        "--initial_fermi_level", metavar="zero|from_data|EV", help="level held or started from"
    )
    group.add_argument(
        "--pbc_handling", choices=PBC_METHODS, help="boundary condition [that of the model]"
    )
    group.add_argument("--scf_history", choices=HISTORIES, default="none", help="[none]")


def _add_keys(group: argparse._ArgumentGroup) -> None:
    for name, item in PROPERTIES.items():
        group.add_argument(f"--{name}_key", metavar="KEY", help=f"{item.meaning} [{item.key}]")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--info_prefix", default="MACE_", metavar="TEXT", help="[MACE_]")
    group.add_argument("--dont_compute_force", action="store_true", help="energies only")
    group.add_argument("--compute_stress", action="store_true", help="for three periodic axes")
    group.add_argument("--error_table", metavar="NAME", help="registered error table")
    group.add_argument("--plot", action="store_true", help="parity plots beside the output")
    group.add_argument("--no_report", action="store_true", help="write no page on the evaluation")
    group.add_argument("--resume", action="store_true", help="go on with an interrupted run")


def read_options(argv: Sequence[str]) -> EvaluationOptions:
    """Check the command line.

    Raises:
        ConfigError: an unknown option or an unusable value.
    """
    given = make_parser().parse_args(list(argv))
    return EvaluationOptions(
        configs=given.configs,
        model=given.model,
        output=given.output,
        mode=given.mode,
        head=given.head,
        batch_size=given.batch_size,
        batch_budget=None if given.batch_budget is None else parse_value(given.batch_budget),
        pbc_handling=given.pbc_handling,
        scf=scf_settings(
            given.scf_options,
            initial_density=given.initial_density,
            initial_fermi_level=given.initial_fermi_level,
        ),
        keys=_keys(vars(given)),
        defaults=given_defaults(given),
        scf_history=given.scf_history,
        info_prefix=given.info_prefix,
        forces=not given.dont_compute_force,
        stress=given.compute_stress,
        device=given.device,
        dtype=given.default_dtype,
        plugins=tuple(given.plugins),
        error_table=given.error_table,
        plot=given.plot,
        report=not given.no_report,
        resume=given.resume,
        inference=inference_of(given),
    )


def scf_settings(text: str | None, **overrides: str | None) -> ScfOptions:
    """Settings of the loop from a YAML file or text and from flags, which win.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or out of range.
    """
    values: dict[str, object] = {}
    if text is not None:
        content = read_yaml(text).values if is_file(text) else parse_value(text)
        if not isinstance(content, Mapping):
            raise ConfigError(
                f"'{text}' is neither a YAML file nor a mapping such as '{{scf_tolerance: 1e-8}}'",
                where="--scf_options",
            )
        values = dict(content)
    for name, value in overrides.items():
        if value is not None:
            values[name] = parse_value(value)
    return make_scf_options(values)


def _keys(given: Mapping[str, str]) -> KeyMapping:
    named = {name: given[f"{name}_key"] for name in PROPERTIES if given[f"{name}_key"]}
    return KeyMapping({**KeyMapping().keys, **named}, frozenset(named))


def run(argv: Sequence[str]) -> int:
    """Evaluate, print errors and convergence, return the exit status."""
    with joined() as group:
        return _run(read_options(argv), group.process)


def _run(options: EvaluationOptions, process: Process) -> int:
    bar: tqdm[NoReturn] = tqdm(unit="conf", disable=None if process.writes else True)

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with bar, warnings.catch_warnings():
        warnings.simplefilter("default")
        report = evaluate_file(options, progress=progress, message=tqdm.write, process=process)
    if process.writes:
        _print_report(options, report)
    return 0


def _print_report(options: EvaluationOptions, report: EvaluationReport) -> None:
    if report.table is not None:
        print(report.table)
    if report.scf is not None:
        print(report.scf)
    if report.unconverged:
        shown = ", ".join(str(index) for index in report.unconverged)
        print(f"not converged (index in {options.configs}): {shown}")
    if report.response is not None:
        print(report.response.describe())
        for text in report.response.warnings():
            print(f"warning: {text}", file=sys.stderr)
    if report.plot is not None:
        print(f"written: {report.plot}")
    if options.report:
        from fpmace.evaluation.page import write_page

        print(f"written: {write_page(options, report)}")
    print(f"written: {options.output} ({report.n_configurations} configurations)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status (2 for anything the user can mend)."""
    return run_command(lambda: run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
