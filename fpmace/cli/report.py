"""``fpmace-report``: a page on a training, finished or going on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fpmace import __version__
from fpmace.cli.common import Parser, run_command

_DESCRIPTION = (
    "Write NAME_report.html on a training from its files: errors, losses, self-consistency, "
    "response, data, configuration and environment, in one file without anything outside of it. A "
    "training writes it at its end, an evaluation beside its output."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; return the exit status."""
    return run_command(lambda: _write(sys.argv[1:] if argv is None else argv))


def _write(argv: Sequence[str]) -> int:
    parser = Parser(prog="fpmace-report", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fpmace {__version__}")
    parser.add_argument("run", metavar="RUN", help="work_dir of the run, or its *_metrics.jsonl")
    arguments = parser.parse_args(list(argv))
    from fpmace.report.pages import write_training_report

    print(f"written: {write_training_report(arguments.run)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
