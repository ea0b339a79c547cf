"""``vis_fixed_point_scf``: the passes of one self-consistency loop as a trajectory and a plot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ase import Atoms
from ase.io.extxyz import write_xyz

from fpmace import __version__
from fpmace.annotations import Values
from fpmace.boundaries import PBC_METHODS
from fpmace.calculators import FixedPointSCFCalculator
from fpmace.calculators.inputs import InputKeys
from fpmace.cli.common import Parser, run_command
from fpmace.cli.defaults import add_defaults
from fpmace.cli.evaluate import scf_settings
from fpmace.data.extxyz import iterate_frames, read_structures
from fpmace.errors import ConfigError, DataError
from fpmace.files import atomic_write, check_output
from fpmace.plots.scf_trajectory import plot_scf, scf_frames
from fpmace.scf.options import ScfOptions

_DESCRIPTION = """\
Run the self-consistency loop of one configuration and write every pass as a frame of an extended
XYZ file, with the density; draw density change, charge error and Fermi level. A loop that does
not converge is shown all the same. Several solvers can be compared in the plot.
"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = Parser(
        prog="vis_fixed_point_scf",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fpmace {__version__}")
    parser.add_argument("--configs", required=True, metavar="FILE", help="extended XYZ file")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="configuration [0]")
    parser.add_argument("--model", required=True, metavar="FILE", help="model file")
    parser.add_argument("--output", metavar="FILE", help="extended XYZ of the passes")
    parser.add_argument("--plot", metavar="FILE", help="picture, such as scf.png")
    parser.add_argument("--scf_options", metavar="FILE|YAML", help="settings of the loop")
    parser.add_argument(
        "--solvers", nargs="+", metavar="NAME", help="solvers in turn [that of --scf_options]"
    )
    parser.add_argument("--head", metavar="NAME", help="of a model with several")
    parser.add_argument("--pbc_handling", choices=PBC_METHODS, help="[that of the model]")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N [cpu]")
    parser.add_argument("--plugins", nargs="+", default=[], metavar="FILE", help="parts to import")
    for name, what in (
        ("total_charge", "info: total charge"),
        ("external_field", "info: external field"),
        ("fermi_level", "info: Fermi level held or started from"),
        ("density", "arrays: density of initial_density from_data"),
    ):
        default = getattr(InputKeys, name)
        parser.add_argument(f"--{name}_key", default=default, help=f"{what} [{default}]")
    add_defaults(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the loop or loops, write and draw; return the exit status."""
    given = make_parser().parse_args(list(argv))
    if given.output is None and given.plot is None:
        raise ConfigError("give --output, --plot or both", where="command line")
    for output in filter(None, (given.output, given.plot)):
        check_output(output, [given.configs, given.model, *given.plugins], where=output)
    atoms = _structure(given.configs, given.index)
    runs, tolerance = [], 0.0
    for name in given.solvers or [None]:
        options = scf_settings(given.scf_options, history="full_history", solver=name)
        tolerance = options.scf_tolerance
        results = _passes(given, atoms, options)
        runs.append((name or _solver_name(options), results))
        state = "converged" if results["scf_converged"] else "not converged"
        change = results["convergence_history"]["density_change"][-1]
        print(
            f"{runs[-1][0]}: {state} after {results['num_scf_steps']} passes, "
            f"density change {change:.2e}"
        )
    if given.output is not None:
        _write(Path(given.output), [scf_frames(atoms, results) for _, results in runs])
        print(f"written: {given.output}")
    if given.plot is not None:
        plot_scf(runs, given.plot, tolerance=tolerance)
        print(f"written: {given.plot}")
    return 0


def _passes(given: argparse.Namespace, atoms: Atoms, options: ScfOptions) -> Values:
    calculator = FixedPointSCFCalculator(
        given.model,
        device=given.device,
        pbc_handling=given.pbc_handling,
        head=given.head,
        scf_options=options,
        charge_key=given.total_charge_key,
        external_field_key=given.external_field_key,
        fermi_level_key=given.fermi_level_key,
        density_key=given.density_key,
        default_total_charge=given.default_total_charge,
        default_total_spin=given.default_total_spin,
        plugins=given.plugins,
    )
    return calculator.evaluate([atoms], properties=("energy",))[0]


def _solver_name(options: ScfOptions) -> str:
    solver = options.solver
    return solver if isinstance(solver, str) else str(solver["type"])


def _structure(path: str, index: int) -> Atoms:
    frames = list(islice(iterate_frames(path), index, index + 1)) if index >= 0 else []
    if not frames:
        raise DataError(f"{path}: has no configuration {index}; --index counts from 0")
    return next(iter(read_structures(path, frames)))[1]


def _write(path: Path, runs: Sequence[Sequence[Atoms]]) -> None:
    """One file for one run; ``name_1.xyz`` and so on for several."""
    for number, frames in enumerate(runs, 1):
        target = path if len(runs) == 1 else path.with_stem(f"{path.stem}_{number}")
        with atomic_write(target) as temporary, temporary.open("w") as stream:
            write_xyz(stream, frames)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status (2 for anything the user can mend)."""
    return run_command(lambda: run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
