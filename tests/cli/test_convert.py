"""``fpmace-convert``: report, precision, and what it does on failure."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from fpmace.cli.convert import main
from fpmace.cli.info import main as info
from fpmace.models.io import load_model, read_model_file

DATA = Path(__file__).parents[1] / "golden" / "data" / "saved_models"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "original.model"
    path.write_bytes(gzip.decompress((DATA / "single_layer_float32.model.gz").read_bytes()))
    return path


def test_converted_file_loads_and_says_where_it_comes_from(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, report = tmp_path / "new.model", tmp_path / "report.txt"
    assert main([str(source), str(output), "--report", str(report)]) == 0
    printed = capsys.readouterr().out
    assert "mace.modules.models.MACE is now MACE" in printed
    assert "elements: [H, C, O]" in printed
    assert f"saved model: {output}" in printed
    for text in (printed, report.read_text()):
        assert "interactions.0.linear.weight" in text
        assert "copied as is under another name" in text
    content = read_model_file(output)
    assert content.dtype == torch.float32
    assert content.metadata["history"][0]["from_class"] == "mace.modules.models.MACE"
    assert content.metadata["history"][0]["from_file"] == "original.model"
    assert info([str(output)]) == 0
    assert "converted" in capsys.readouterr().out


def test_precision_can_be_chosen(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "new.model"
    assert main([str(source), str(output), "--dtype", "float64", "--quiet"]) == 0
    model = load_model(output)
    assert {item.dtype for item in model.parameters()} == {torch.float64}


def test_failure_is_one_line_and_writes_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, output = tmp_path / "other.model", tmp_path / "new.model"
    torch.save(torch.nn.Linear(1, 1), other)
    assert main([str(other), str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {other}: holds a torch.nn.modules.linear.Linear")
    assert error.count("\n") == 1
    assert not output.exists()
    assert main([str(source), str(source)]) == 2
    assert "give another name" in capsys.readouterr().err
