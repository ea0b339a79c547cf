"""The account of a conversion as text."""

from __future__ import annotations

from prettytable import PrettyTable

from fpmace.conversion.weights import Fate, WeightsReport

_EXPLAINED: dict[Fate, str] = {
    "taken": "copied as is",
    "renamed": "copied as is under another name",
    "re-expressed": "converted to the polynomials of fpmace",
    "constant": "carry no trained numbers",
    "not understood": "fit nothing in fpmace",
    "missing": "parameters of fpmace without a value",
}


def report_lines(report: WeightsReport) -> list[str]:
    """A table with one line per entry: name, shape, fate, name in fpmace, reason."""
    table = PrettyTable(["entry", "shape", "fate", "name in fpmace", "note"], align="l")
    for entry in report.entries:
        target = entry.target if entry.target != entry.name else ""
        shape = "x".join(map(str, entry.shape)) or "scalar"
        table.add_row([entry.name, shape, entry.fate, target, entry.note])
    lines: list[str] = table.get_string(border=True, hrules=0).splitlines()
    return [line.rstrip() for line in lines]


def summary(report: WeightsReport) -> list[str]:
    """One line per fate that occurs, with the number of entries."""
    counts = [(fate, report.count(fate), text) for fate, text in _EXPLAINED.items()]
    return [f"{fate}: {count} ({text})" for fate, count, text in counts if count]
