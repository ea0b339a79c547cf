"""``fpmace-plot-train``: losses, errors and learning rates of runs over epochs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fpmace.cli.common import run_command
from fpmace.cli.plot_runs import make_parser, output_path, read_and_report
from fpmace.plots.training_runs import STATISTICS, plot_training_runs

_DESCRIPTION = (
    "Plot the loss and its terms, validation errors, learning rate and time per epoch from the "
    "metrics files of training runs."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Plot runs; return the exit status."""
    return run_command(lambda: _plot(sys.argv[1:] if argv is None else argv))


def _plot(argv: Sequence[str]) -> int:
    parser = make_parser("fpmace-plot-train", _DESCRIPTION)
    parser.add_argument("--errors", choices=STATISTICS, default="rmse", help="[rmse]")
    arguments = parser.parse_args(list(argv))
    runs = read_and_report(arguments)
    path = output_path(arguments, runs, "_training.png")
    plot_training_runs(runs, path, statistic=arguments.errors)
    print(f"saved plot: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
