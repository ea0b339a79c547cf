"""The report of a run: made at the end and from files, and looked at in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browser import measure

from fpmace.cli import evaluate, report, train
from fpmace.report.content import Content
from fpmace.report.html import Table, escape

DATA = Path(__file__).resolve().parents[2] / "data" / "quickstart" / "test.xyz"
CONFIG = f"""\
name: small
train_file: {DATA}
valid_file: {DATA}
E0s: average
r_max: 3.0
hidden_irreps: 2x0e+2x1o
MLP_irreps: 2x0e
max_ell: 1
num_radial_basis: 4
radial_MLP: [4]
correlation: 1
num_interactions: 1
batch_size: 32
max_num_epochs: 2
eval_interval: 2
num_threads: 1
loss: {{energy_per_atom: 1.0, forces: 10.0, atomic_multipoles: 10.0}}
fixed_point_training_options: {{mode: direct}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training with a density."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(CONFIG)
    assert train.main(["--config", f"{folder}/config.yaml", "--work_dir", f"{folder}"]) == 0
    return folder


def sections(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_everything_is_on_the_page(run: Path) -> None:
    page = (run / "small_report.html").read_text(encoding="utf-8")
    assert sections(page) == [
        "Summary",
        "Errors",
        "Training",
        "Self-consistency and response",
        "Predicted against reference values",
        "Data",
        "Configuration",
        "Environment",
    ]
    for text in ("trivial: mean", "SCF converged for", "response of", "water_w4", "2x0e+2x1o"):
        assert text in page, text
    assert f"{run}/config.yaml:" in page  # where options come from
    assert page.count("<svg") == 3
    # Nothing outside of it is asked for.
    assert not re.findall(r'(?:src|href)="(?!#|data:)(?!http://www.w3.org)[^"]+', page)
    assert "quick" in json.loads((run / "small_metrics.jsonl").read_text().splitlines()[0])


def test_it_is_made_again_from_the_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "small_report.html"
    before = path.read_text(encoding="utf-8")
    path.unlink()
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().out == f"written: {path}\n"
    assert path.read_text(encoding="utf-8") == before


def test_a_run_that_has_not_ended_has_a_page_too(run: Path, tmp_path: Path) -> None:
    for ending in ("_metrics.jsonl", "_report.json"):
        (tmp_path / f"small{ending}").write_bytes((run / f"small{ending}").read_bytes())
    content = Content.load(tmp_path / "small_report.json")
    started = Content(configuration=content.configuration, data=content.data)
    started.save(tmp_path / "small_report.json")
    assert report.main([str(tmp_path / "small_metrics.jsonl")]) == 0
    page = (tmp_path / "small_report.html").read_text(encoding="utf-8")
    assert "has not ended" in page
    assert "validation of epoch 1" in page
    (tmp_path / "small_report.json").unlink()
    assert report.main([str(tmp_path)]) == 0
    assert "Training" in sections((tmp_path / "small_report.html").read_text(encoding="utf-8"))


def test_wrong_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], run) -> None:
    cases = {
        "": "command line",
        f"{tmp_path}/none": "no such file",
        f"{tmp_path}": "holds no *_metrics.jsonl",
    }
    for words, message in cases.items():
        assert report.main(words.split()) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1
        assert message in errors[0]
    for name in "ab":
        (tmp_path / f"{name}_metrics.jsonl").write_bytes(
            (run / "small_metrics.jsonl").read_bytes()
        )
    assert report.main([str(tmp_path)]) == 2
    assert "holds several runs" in capsys.readouterr().err
    (tmp_path / "a_report.json").write_text('{"colour": 3}')
    assert report.main([f"{tmp_path}/a_metrics.jsonl"]) == 2
    assert "a_report.json: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(run: Path, tmp_path: Path, dark: bool) -> None:
    found = measure(run / "small_report.html", tmp_path, dark=dark)
    assert found["console"] == ""
    assert found["content"] <= found["width"] <= 1280
    assert found["svgs"] == 3
    assert found["tables"] > 10
    assert found["paper"] == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")


def test_text_is_escaped_and_numbers_stand_right() -> None:
    text = Table(["a", "b"], [["<x>", "1.5"], ["A^2", "-"]], "t & u").html()
    assert "&lt;x&gt;" in text
    assert '<td class="number">1.5</td>' in text
    assert "t &amp; u" in text
    assert escape("e A^2/V, me A/atom, A") == "e Å^2/V, me Å/atom, Å"
    assert escape("A word, CHARGE_A") == "A word, CHARGE_A"


def test_the_page_of_an_evaluation(run: Path, tmp_path: Path, capsys) -> None:
    given = {"--configs": DATA, "--model": run / "small.model", "--output": tmp_path / "o.xyz"}
    argv = [str(text) for pair in given.items() for text in pair]
    assert evaluate.main([*argv, "--batch_size", "32"]) == 0
    path = tmp_path / "o.report.html"
    assert f"written: {path}" in capsys.readouterr().out
    page = path.read_text(encoding="utf-8")
    assert sections(page) == [
        "Summary",
        "Errors",
        "Self-consistency and response",
        "Predicted against reference values",
        "Configuration",
        "Environment",
    ]
    assert "REF_energy" in page
    found = measure(path, tmp_path)
    assert found["console"] == ""
    assert found["content"] <= found["width"]
    assert found["svgs"] == 1
    path.unlink()
    assert evaluate.main([*argv, "--batch_size", "32", "--no_report"]) == 0
    assert not path.exists()
