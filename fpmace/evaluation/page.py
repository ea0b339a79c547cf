"""The page on an evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fpmace import registry
from fpmace.evaluation.evaluate import EvaluationReport
from fpmace.evaluation.options import EvaluationOptions
from fpmace.metrics.tables import error_tables
from fpmace.plots.canvas import svg
from fpmace.plots.parity import draw_parity
from fpmace.report.content import Content, now, plain_table
from fpmace.report.environment import environment
from fpmace.report.pages import write_evaluation_report

_INNER = ("keys", "save_every", "report", "resume")


def write_page(options: EvaluationOptions, found: EvaluationReport) -> Path:
    """Write ``OUTPUT.report.html`` (without the suffix of the output) and return its path."""
    content = Content(finished=now(), environment=environment(options.device))
    content.model = {
        "model": options.model,
        "configurations": str(found.n_configurations),
        "not converged": ", ".join(map(str, found.unconverged)) or "none",
    }
    if found.errors:
        table = registry.build("error_table", found.table_name, where="error_table")
        content.errors = [plain_table(item) for item in error_tables(table, found.errors)]
    content.notes = [str(found.scf)] if found.scf is not None else []
    if found.response is not None:
        content.notes.append(found.response.describe())
        content.warnings = found.response.warnings()
    figure = draw_parity(found.parity, Path(options.configs).name, found.groups)
    if figure is not None:
        content.parity["all"] = svg(figure, "predicted against reference values")
    values = {item.name: getattr(options, item.name) for item in dataclasses.fields(options)}
    shown = {name: value for name, value in values.items() if name not in _INNER}
    shown |= {f"{name}_key": key for name, key in options.keys.keys.items()}
    path = Path(options.output).with_suffix(".report.html")
    write_evaluation_report(content, path, options=shown)
    return path
