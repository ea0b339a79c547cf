"""What a report shows beyond metrics and configuration, gathered while models and data are there.

The content of a training is kept in ``NAME_report.json``, from which ``fpmace-report`` makes the
page again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from prettytable import PrettyTable

from fpmace.annotations import Values
from fpmace.errors import DataError
from fpmace.files import atomic_write

ENDING = "_report.json"


@dataclass
class Content:
    """Plain text and numbers of a report; tables are ``{"title", "columns", "rows"}``.

    Attributes:
        finished: when the run ended; empty while it goes on.
        model: what the model is, by name.
        errors, data, configuration: tables.
        notes: lines on self-consistency and response.
        warnings: what was warned of.
        parity: drawings of predicted against reference values, by data set.
        environment: see :func:`fpmace.report.environment.environment`.
    """

    finished: str = ""
    model: dict[str, str] = field(default_factory=dict)
    errors: list[Values] = field(default_factory=list)
    data: list[Values] = field(default_factory=list)
    configuration: list[Values] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    parity: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Content:
        """Read what :meth:`save` wrote; empty if there is no such file yet.

        Raises:
            DataError: the file is not one of fpmace.
        """
        if not path.is_file():
            return cls()
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete it") from None


def plain_table(table: PrettyTable, title: str = "") -> Values:
    """A printed table as plain values."""
    return {
        "title": title or table.title or "",
        "columns": list(table.field_names),
        "rows": [[str(value) for value in row] for row in table.rows],
    }


def now() -> str:
    """Date and time of this place."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def pairs_table(values: Mapping[str, object], title: str = "") -> Values:
    """Names and values as a table."""
    rows = [[name, str(value)] for name, value in values.items()]
    return {"title": title, "columns": ["", ""], "rows": rows}


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200.0 else f"{seconds / 3600:.1f} h"
