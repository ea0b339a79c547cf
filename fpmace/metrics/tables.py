"""Error tables as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prettytable import PrettyTable

from fpmace.metrics.error_tables import RESPONSE_COLUMNS
from fpmace.metrics.errors import Column, ErrorStatistics, ErrorTable

NOT_LABELLED = "-"

LEVELS = (
    "Fermi level of the model: the one that holds the total charge, the slope of the energy by "
    "the electron number if the energy is variational; labels of molecules are often mid-gap, "
    "which differs"
)
"""Stands below a table with Fermi levels."""


def format_value(value: float | None) -> str:
    """Four significant digits, or a dash where nothing is labelled."""
    return NOT_LABELLED if value is None else f"{value:.4g}"


def error_table(table: ErrorTable, rows: Mapping[str, Mapping[str, ErrorStatistics]]) -> str:
    """Render a table with one row per data set (or config_type).

    Args:
        rows: name of the row -> statistics by quantity.
    """
    found = error_tables(table, rows)
    levels = any("Fermi level" in name for item in found for name in item.field_names)
    return "\n".join([*(item.get_string() for item in found), *([LEVELS] if levels else [])])


def error_tables(
    table: ErrorTable, rows: Mapping[str, Mapping[str, ErrorStatistics]]
) -> list[PrettyTable]:
    """The table, and a second one where there are errors of the response or of Fermi levels."""
    shown = table.columns()
    more = [
        column
        for column in RESPONSE_COLUMNS
        if column not in shown
        and any(column.value(dict(row)) is not None for row in rows.values())
    ]
    return [_filled(columns, rows) for columns in (shown, more) if columns]


def _filled(
    columns: Sequence[Column], rows: Mapping[str, Mapping[str, ErrorStatistics]]
) -> PrettyTable:
    text = PrettyTable()
    text.field_names = ["set", *(column.title for column in columns)]
    text.align = "r"
    text.align["set"] = "l"
    for name, statistics in rows.items():
        text.add_row([name, *(format_value(column.value(dict(statistics))) for column in columns)])
    return text
