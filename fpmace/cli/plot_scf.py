"""``fpmace-plot-scf``: how the self-consistency loops of runs went, over epochs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fpmace.cli.common import run_command
from fpmace.cli.plot_runs import make_parser, output_path, read_and_report
from fpmace.plots.training_runs import plot_scf_runs

_DESCRIPTION = (
    "Plot how many structures reached self-consistency in each epoch, in how many steps, and the "
    "charge error that was left, from the metrics files of training runs."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Plot runs; return the exit status."""
    return run_command(lambda: _plot(sys.argv[1:] if argv is None else argv))


def _plot(argv: Sequence[str]) -> int:
    arguments = make_parser("fpmace-plot-scf", _DESCRIPTION).parse_args(list(argv))
    runs = read_and_report(arguments)
    path = output_path(arguments, runs, "_scf.png")
    plot_scf_runs(runs, path)
    print(f"saved plot: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
