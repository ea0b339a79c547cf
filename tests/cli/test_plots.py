"""Plots of runs, finished or going on, from their metrics files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from fpmace.cli import plot_scf, plot_train
from fpmace.plots import canvas
from fpmace.plots.run_records import read_runs


def scf(converged: int, failed: int) -> dict[str, Any]:
    return {
        "converged": converged,
        "max_steps": failed,
        "mean_n_steps": 7.5,
        "max_n_steps": 12,
        "max_charge_error": 1e-5,
    }


def record(epoch: int, *, loops: bool = True) -> dict[str, Any]:
    """An epoch of a run with two stages and a validation every second epoch."""
    stage = 0 if epoch < 3 else 1
    terms = {"energy_per_atom": 1.0 / (epoch + 1), "forces": None if epoch == 1 else 0.5}
    ran = scf(6 + epoch, 4) if loops and stage else None
    train = {"loss": 2.0 / (epoch + 1), "terms": terms, "scf": ran}
    errors = {
        "energy": {"rmse": 0.2, "mae": 0.1, "max": 0.5},
        "energy_per_atom": {"rmse": 0.02 / (epoch + 1), "mae": 0.01, "max": 0.05},
    }
    return {
        "epoch": epoch,
        "stage": stage,
        "stage_name": ["direct", "unroll"][stage],
        "step": 10 * epoch,
        "lr": {"embedding": 0.01, "readouts": 0.001},
        "train": train,
        "valid": {**train, "errors": errors} if epoch % 2 else None,
        "seconds": 1.5,
    }


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "water_metrics.jsonl"
    path.write_text("".join(json.dumps(record(epoch)) + "\n" for epoch in range(6)))
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that are drawn while the test runs."""
    figures: list[Figure] = []
    agg = canvas.FigureCanvasAgg
    monkeypatch.setattr(
        canvas, "FigureCanvasAgg", lambda figure: (figures.append(figure), agg(figure))
    )
    return figures


def panels(figure: Figure) -> dict[str, Any]:
    return {axis.get_title(): axis for axis in figure.get_axes() if axis.get_title()}


def test_training_plot_shows_terms_errors_and_stages(
    metrics: Path, capsys: pytest.CaptureFixture[str], drawn: list[Figure]
) -> None:
    assert plot_train.main([str(metrics)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{metrics}: epochs 0 to 5 (direct from 0, unroll from 3)"
    plot = metrics.with_name("water_training.png")
    assert lines[1] == f"saved plot: {plot}"
    image = imread(plot)
    assert image.shape[1] > 1000
    assert np.ptp(image) > 0.5
    shown = panels(drawn[0])
    assert list(shown) == [
        "loss",
        "energy_per_atom",
        "forces",
        "energy per atom / meV/atom",
        "largest learning rate",
        "seconds per epoch",
    ]
    assert shown["loss"].get_yscale() == "log"
    lines_of_loss = shown["loss"].get_lines()
    assert [list(line.get_xdata()) for line in lines_of_loss[:4]] == [
        [0, 1, 2],  # training, one line per stage
        [3, 4, 5],
        [1],  # validation
        [3, 5],
    ]
    assert lines_of_loss[4].get_xdata() == [2.5, 2.5]  # where the second stage begins
    assert list(shown["forces"].get_lines()[0].get_xdata()) == [0, 2]  # null is left out
    errors = shown["energy per atom / meV/atom"].get_lines()
    assert errors[0].get_ydata() == pytest.approx([10.0])


def test_scf_plot_shows_outcomes_and_steps(metrics: Path, drawn: list[Figure]) -> None:
    assert plot_scf.main([str(metrics.parent)]) == 0
    assert metrics.with_name("water_scf.png").stat().st_size > 1000
    shown = panels(drawn[0])
    converged = shown["fraction converged"].get_lines()[0]
    assert converged.get_ydata() == pytest.approx([9 / 13, 10 / 14, 11 / 15])
    assert shown["mean number of steps"].get_lines()[0].get_ydata() == pytest.approx([7.5] * 3)
    rate = shown["structures per second"].get_lines()[0].get_ydata()
    assert rate == pytest.approx([26 / 1.5, 14 / 1.5, 30 / 1.5])


def test_the_evaluation_at_the_end_is_shown_with_the_loops(
    metrics: Path, drawn: list[Figure]
) -> None:
    results = metrics.with_name("water_results.json")
    results.write_text(json.dumps({"train": {"scf": scf(10, 0)}, "valid": {"scf": scf(3, 1)}}))
    assert plot_scf.main([str(metrics)]) == 0
    stars = [
        line
        for line in panels(drawn[0])["fraction converged"].get_lines()
        if line.get_marker() == "*"
    ]
    assert [float(line.get_ydata()[0]) for line in stars] == [1.0, 0.75]
    assert float(stars[0].get_xdata()[0]) == 5
    os.utime(results, (0, 0))  # of an earlier run
    assert plot_scf.main([str(metrics)]) == 0
    lines = panels(drawn[1])["fraction converged"].get_lines()
    assert not any(line.get_marker() == "*" for line in lines)


def test_a_loss_that_falls_by_orders_of_magnitude_is_drawn(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    path = tmp_path / "a_metrics.jsonl"
    records = [record(epoch, loops=False) for epoch in range(4)]
    for number, item in enumerate(records):
        item["train"]["terms"] = {"forces": 1000.0 * 0.01**number}
    path.write_text("".join(json.dumps(item) + "\n" for item in records))
    assert plot_train.main([str(path)]) == 0
    low, high = panels(drawn[0])["forces"].get_ylim()
    assert 0.0 < low <= 1e-3
    assert high >= 1000.0


def test_rounding_is_not_drawn_as_an_error(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "a_metrics.jsonl"
    records = [record(epoch, loops=False) for epoch in range(4)]
    for number, item in enumerate(records):
        item["train"]["terms"] = {
            "total_charge": 1e-30 * (1 + number),
            "forces": 10.0 ** -(8 * number),
        }
    path.write_text("".join(json.dumps(item) + "\n" for item in records))
    assert plot_train.main([str(path)]) == 0
    shown = panels(drawn[0])
    assert shown["total_charge"].get_ylim()[1] < 1e-9
    assert [text.get_text() for text in shown["total_charge"].texts] == ["exact"]
    assert shown["forces"].get_ylim()[0] == pytest.approx(1e-12)
    assert shown["forces"].get_yscale() == "log"


def test_a_line_that_is_being_written_is_left_out(
    metrics: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics.write_text(metrics.read_text() + json.dumps(record(6))[:40])
    assert plot_train.main([str(metrics)]) == 0
    assert "epochs 0 to 5" in capsys.readouterr().out
    assert read_runs([metrics])[0].cut


def test_runs_are_overlaid_with_labels_that_tell_them_apart(tmp_path: Path) -> None:
    for name in ("small", "large"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "water_metrics.jsonl").write_text(json.dumps(record(0)) + "\n")
    folders = [str(tmp_path / "small"), str(tmp_path / "large")]
    assert [run.label for run in read_runs(folders)] == ["small/water", "large/water"]
    plot = tmp_path / "both.svg"
    assert plot_train.main([*folders, "--output", str(plot), "--labels", "one", "two"]) == 0
    assert plot.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "holds no epochs yet"),
        ("epoch 1\nepoch 2\n", "line 1 is not JSON"),
        ('{"epoch": 0}\n', "line 1 has no 'stage'"),
        ("[1, 2]\n", "line 1 has no 'epoch'"),
        ("\x00\xff", "is not a metrics file"),
    ],
)
@pytest.mark.parametrize("command", [plot_train, plot_scf])
def test_wrong_files_are_one_line(
    command: Any,
    content: str | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "x_metrics.jsonl"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    assert command.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


def test_a_damaged_line_in_the_middle_is_named(
    metrics: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = metrics.read_text().splitlines()
    lines[2] = lines[2][:30]
    metrics.write_text("\n".join(lines))
    assert plot_train.main([str(metrics)]) == 2
    assert "line 3 is not JSON" in capsys.readouterr().err


def test_runs_without_loops_and_wrong_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d_metrics.jsonl"
    path.write_text(json.dumps(record(0)) + "\n")
    assert plot_scf.main([str(path)]) == 2
    assert "no SCF loop was run (stages: direct)" in capsys.readouterr().err
    assert plot_train.main([str(path), "--output", "plot.doc"]) == 2
    assert "unknown format '.doc'" in capsys.readouterr().err
    assert plot_train.main([str(path), "--labels", "a", "b"]) == 2
    assert "got 2 for 1 metrics files" in capsys.readouterr().err
    assert plot_train.main([]) == 2
    assert "required" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert plot_train.main([str(empty)]) == 2
    assert "holds no *_metrics.jsonl" in capsys.readouterr().err
