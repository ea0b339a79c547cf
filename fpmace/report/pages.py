"""The pages: a training from its files, an evaluation from what it found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from fpmace.annotations import Values, plain
from fpmace.errors import DataError
from fpmace.files import atomic_write
from fpmace.plots.canvas import svg
from fpmace.plots.run_records import ENDING as METRICS
from fpmace.plots.run_records import Run, read_runs
from fpmace.plots.training_runs import draw_scf, draw_training, has_loops
from fpmace.report.content import ENDING, Content, duration, pairs_table
from fpmace.report.html import Page, Table, drawing, paragraph, warning

_FLAT = 70
"""Longest value that stays in one line of the configuration."""


def report_path(folder: Path, name: str) -> Path:
    """Where the page of a training goes."""
    return folder / f"{name}_report.html"


def write_training_report(metrics: str | Path) -> Path:
    """Make the page of a training, finished or going on, from the files in its folder.

    Args:
        metrics: its ``*_metrics.jsonl``, or a folder that holds one.

    Returns:
        The page, ``NAME_report.html`` beside the metrics.

    Raises:
        DataError: a file is missing or is not what it should be, or the folder holds several runs.
    """
    runs = read_runs([metrics])
    if len(runs) > 1:
        names = ", ".join(str(run.path) for run in runs)
        raise DataError(f"{metrics}: holds several runs ({names}); name one of these files")
    run = runs[0]
    name = run.path.name.removesuffix(METRICS)
    path = report_path(run.path.parent, name)
    _write(path, training_page(run, Content.load(run.path.with_name(name + ENDING)), name))
    return path


def training_page(run: Run, content: Content, name: str) -> Page:
    """The page of a training.

    Args:
        content: empty while the run goes on.
    """
    last = run.records[-1]
    seconds = sum(float(item.get("seconds") or 0.0) for item in run.records)
    state = f"ended {content.finished}" if content.finished else "has not ended"
    page = Page(
        f"Training {name}",
        f"{state}; {len(run.records)} epochs ({_stages(run)}), {duration(seconds)} of training",
    )
    page.section("Summary", [_pairs(content.model), *map(warning, content.warnings)])
    page.section("Errors", _tables(content.errors) or [_errors(last)])
    page.section("Training", [drawing(svg(draw_training([run]), "losses and errors by epoch"))])
    loops = [drawing(svg(draw_scf([run]), "SCF loops by epoch"))] if has_loops([run]) else []
    page.section("Self-consistency and response", [*map(paragraph, content.notes), *loops])
    page.section("Predicted against reference values", _parity(content))
    page.section("Data", _tables(content.data))
    page.section("Configuration", _tables(content.configuration))
    page.section("Environment", [_pairs(content.environment)])
    return page


def write_evaluation_report(content: Content, path: Path, *, options: Values) -> None:
    """Write the page of an evaluation.

    Args:
        options: what was asked for, by name.
    """
    page = Page(f"Evaluation {Path(str(options['configs'])).name}", f"ended {content.finished}")
    page.section("Summary", [_pairs(content.model), *map(warning, content.warnings)])
    page.section("Errors", _tables(content.errors))
    page.section("Self-consistency and response", map(paragraph, content.notes))
    page.section("Predicted against reference values", _parity(content))
    page.section("Configuration", [_pairs({name: shown(v) for name, v in options.items()})])
    page.section("Environment", [_pairs(content.environment)])
    _write(path, page)


def _write(path: Path, page: Page) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(page.html(), encoding="utf-8")


def _pairs(values: Values | dict[str, str]) -> str:
    return _tables([pairs_table(values)])[0] if values else ""


def _tables(tables: Sequence[Values]) -> list[str]:
    return [Table.from_json(item).html() for item in tables]


def _parity(content: Content) -> list[str]:
    return [
        drawing(text, narrow=text.count("reference /") < 3) for text in content.parity.values()
    ]


def _errors(record: Values) -> str:
    """Errors of the last validation, while there is no evaluation."""
    found = (record["valid"] or {}).get("errors", {})
    rows = [[name, f"{v['rmse']:.4g}", f"{v['mae']:.4g}"] for name, v in found.items()]
    title = f"validation of epoch {record['epoch']}, in eV, Angstrom and e"
    return Table(["quantity", "RMSE", "MAE"], rows, title).html() if rows else ""


def _stages(run: Run) -> str:
    return ", ".join(f"{name} from {first}" for name, first in run.stages)


def shown(value: object) -> str:
    """A value of an option as text, in several lines where it is long."""
    value = plain(value)
    if not isinstance(value, dict | list):
        return str(value)
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip()
    if len(text) <= _FLAT:
        return text
    return yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=90).strip()
