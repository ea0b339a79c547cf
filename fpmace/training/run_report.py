"""The report of a training, gathered as it goes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from matplotlib.figure import Figure

from fpmace.annotations import Values
from fpmace.config.load import ResolvedConfig
from fpmace.config.schema import applicable_options
from fpmace.data.dataset import StructureDataset
from fpmace.data.summary import summary_tables
from fpmace.distributed.process import Process
from fpmace.metrics.baseline import DESCRIPTION
from fpmace.metrics.errors import ErrorStatistics, ErrorTable
from fpmace.metrics.tables import error_tables
from fpmace.models.base import Model
from fpmace.plots.canvas import svg
from fpmace.plots.parity import draw_parity
from fpmace.plots.run_records import read_runs
from fpmace.plots.training_runs import draw_training
from fpmace.report.content import Content, now, plain_table
from fpmace.report.environment import environment
from fpmace.report.pages import shown
from fpmace.training.evaluate import Evaluation


def begin(
    content: Content,
    resolved: ResolvedConfig,
    model: Model,
    datasets: Mapping[str, StructureDataset],
    process: Process,
) -> None:
    """Fill in what is known before the first epoch."""
    config = resolved.config
    n_parameters = sum(item.numel() for item in model.parameters() if item.requires_grad)
    content.model = {
        "model": config.model_name,
        "trainable parameters": str(n_parameters),
        "precision": config.default_dtype,
    }
    content.data = [plain_table(table) for table in summary_tables(datasets)]
    content.configuration = configuration_tables(resolved)
    content.environment = environment(config.device, process.world_size)


def finish(
    content: Content,
    table: ErrorTable,
    evaluations: Mapping[str, Evaluation],
    trivial: Mapping[str, Evaluation],
) -> None:
    """Add the evaluations at the end, and the errors of trivial predictions beside them."""
    content.finished = now()
    rows = {name: item.errors for name, item in {**evaluations, **trivial}.items()}
    content.errors = _errors(table, rows)
    if trivial:
        content.errors[0]["title"] = DESCRIPTION
    for name, item in evaluations.items():
        if item.errors_by_head:
            content.errors += _errors(table, item.errors_by_head, f"{name} by head")
    last, item = list(evaluations.items())[-1]
    if len(item.groups) > 1:
        content.errors += _errors(table, item.errors_by_group, f"{last} by config_type")
    for name, item in evaluations.items():
        content.notes += [f"{name}: {text}" for text in _notes(item)]
        figure = draw_parity(item.parity, name, item.groups)
        if figure is not None:
            content.parity[name] = svg(figure, f"predicted against reference values of {name}")


def _errors(
    table: ErrorTable, rows: Mapping[str, Mapping[str, ErrorStatistics]], title: str = ""
) -> list[Values]:
    return [plain_table(item, title) for item in error_tables(table, rows)]


def _notes(item: Evaluation) -> Iterator[str]:
    if item.scf.n_graphs:
        yield str(item.scf)
    if item.diagnostics.to_json() is not None:
        yield str(item.diagnostics)
    if item.response is not None:
        yield item.response.describe()


def figures_of(metrics: Path, evaluations: Mapping[str, Evaluation]) -> dict[str, Figure]:
    """Plots for loggers, by name."""
    figures = {"training": draw_training(read_runs([metrics]))}
    for name, item in evaluations.items():
        figure = draw_parity(item.parity, name, item.groups)
        if figure is not None:
            figures[f"parity_{name}"] = figure
    return figures


def configuration_tables(resolved: ResolvedConfig) -> list[Values]:
    """Every option that applies, by group, with where its value came from."""
    config, origins = resolved.config, resolved.origins
    groups: dict[str, list[list[str]]] = {}
    for item in applicable_options(config):
        if item.role.action:
            continue
        rows = groups.setdefault(item.group, [])
        if item.name == "model":
            for name, value in config.model_options.items():
                where = origins.get(f"model.{name}", "default")
                rows.append([f"model.{name}", shown(value), where])
        else:
            value = getattr(config, item.name)
            rows.append([item.name, shown(value), origins.get(item.name, "default")])
    return [
        {"title": title, "columns": ["option", "value", "from"], "rows": rows}
        for title, rows in groups.items()
    ]


@contextmanager
def collected_warnings(found: list[str]) -> Iterator[None]:
    """Add what the package warns of in the block to ``found``, each text once."""
    handler = _Collector(found)
    logger = logging.getLogger("fpmace")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Collector(logging.Handler):
    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.found = found

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.found:
            self.found.append(text)
