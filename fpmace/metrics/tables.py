"""Error tables as text."""

from __future__ import annotations

from collections.abc import Mapping

from prettytable import PrettyTable

from fpmace.metrics.errors import ErrorStatistics, ErrorTable

NOT_LABELLED = "-"


def format_value(value: float | None) -> str:
    """Four significant digits, or a dash where nothing is labelled."""
    return NOT_LABELLED if value is None else f"{value:.4g}"


def error_table(table: ErrorTable, rows: Mapping[str, Mapping[str, ErrorStatistics]]) -> str:
    """Render a table with one row per data set (or config_type).

    Args:
        rows: name of the row -> statistics by quantity.
    """
    columns = table.columns()
    text = PrettyTable()
    text.field_names = ["set", *(column.title for column in columns)]
    text.align = "r"
    text.align["set"] = "l"
    for name, statistics in rows.items():
        text.add_row([name, *(format_value(column.value(dict(statistics))) for column in columns)])
    return text.get_string()
