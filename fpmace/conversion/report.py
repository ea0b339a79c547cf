"""The account of a conversion as text."""

from __future__ import annotations

from fpmace.conversion.weights import Fate, WeightFate, WeightsReport

_EXPLAINED: dict[Fate, str] = {
    "taken": "copied as is",
    "renamed": "copied as is under another name",
    "re-expressed": "converted to the polynomials of fpmace",
    "constant": "carry no trained numbers",
    "not understood": "fit nothing in fpmace",
    "missing": "parameters of fpmace without a value",
}


def report_lines(report: WeightsReport) -> list[str]:
    """One line per entry: name, shape, fate, and the new name or the reason."""
    rows = [("entry", "shape", "fate", "")]
    for entry in report.entries:
        shape = "x".join(map(str, entry.shape)) or "number"
        remark = entry.note if entry.target in ("", entry.name) else f"is now {_short(entry)}"
        if entry.fate == "re-expressed":
            remark = f"{remark}; {entry.note}"
        rows.append((entry.name, shape, entry.fate, remark))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]).rstrip() for row in rows
    ]


def _short(entry: WeightFate) -> str:
    """The new name; where only a prefix was added, that with an ellipsis."""
    added = entry.target.removesuffix(entry.name)
    return f"{added}..." if added != entry.target else entry.target


def summary(report: WeightsReport) -> list[str]:
    """One line per fate that occurs, with the number of entries."""
    counts = [(fate, report.count(fate), text) for fate, text in _EXPLAINED.items()]
    return [f"{fate}: {count} ({text})" for fate, count, text in counts if count]
