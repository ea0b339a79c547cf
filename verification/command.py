"""``verify_golden``: compare fpmace with a directory of reference numbers."""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from prettytable import PrettyTable

from fpmace.cli.common import run_command
from fpmace.errors import DataError
from verification.rows import GoldenRow

CHECKS: dict[str, str] = {
    "electrostatics": "verification.electrostatics:check_electrostatics",
    "mace_backbone": "verification.backbone:check_backbone",
    "fixed_point": "verification.fixed_point:check_fixed_point",
    "foundation": "verification.foundation:check_foundation",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 if nothing failed, 1 if something did, 2 for a wrong directory."""
    parser = argparse.ArgumentParser(
        description="Recompute reference numbers and print the largest errors."
    )
    parser.add_argument("directory", type=Path, help="holds " + ", ".join(CHECKS))
    return run_command(lambda: _verify(parser.parse_args(argv).directory))


def _verify(directory: Path) -> int:
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory")
    found = [name for name in CHECKS if (directory / name).is_dir()]
    if not found:
        raise DataError(f"{directory}: holds none of the folders {', '.join(CHECKS)}")
    counts: Counter[str] = Counter()
    for name in found:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            rows = _load_check(CHECKS[name])(directory / name)
        own = Counter(row.status for row in rows)
        print(f"{name}: {_summary(own)}\n{_table(rows)}", flush=True)
        counts.update(own)
    print(_summary(counts))
    return 1 if counts["FAIL"] else 0


def _summary(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[status]} {status}" for status in ("pass", "FAIL", "unsupported"))


def _load_check(target: str) -> Callable[[Path], list[GoldenRow]]:
    from importlib import import_module

    module, _, function = target.partition(":")
    check: Callable[[Path], list[GoldenRow]] = getattr(import_module(module), function)
    return check


def _table(rows: list[GoldenRow]) -> PrettyTable:
    table = PrettyTable(["case", "quantity", "max error", "tolerance", "status", "note"])
    table.align = "l"
    for row in rows:
        numbers = [f"{value:.1e}" if value == value else "" for value in _errors(row)]
        table.add_row([row.case, row.quantity, *numbers, row.status, row.note])
    return table


def _errors(row: GoldenRow) -> tuple[float, float]:
    return row.max_error, row.tolerance
