"""The installed commands, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fpmace.cli import info, train
from fpmace.cli.common import run_command
from fpmace.models.io import save_model
from fpmace.registry import build

REPOSITORY = Path(__file__).parents[2]

PLUGIN = """
from fpmace.registry import register_error_table
from fpmace.metrics.errors import ErrorTable

@register_error_table("MyTable")
class MyTable(ErrorTable):
    '''A table of my own.'''
    def __init__(self, *, digits: int = 3) -> None:
        self.digits = digits

    def columns(self):
        return ()
"""


def run(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_script_and_exit_status_of_a_wrong_flag() -> None:
    result = run("scripts/run_train.py", "--trainfile", "a.xyz")
    assert result.returncode == 2
    assert "--trainfile: unknown flag; did you mean '--train_file'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_exit_status_of_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run_command(interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_list_blocks_names_everything_with_options_and_description(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train.main(["--list-blocks"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "update_rule (update rule)",
        "OneBodyVariableUpdate",
        "nonlinearity_cls: <nonlinearity> = 'NoNonLinearity'",
        "StrictQuadraticFieldEnergyReadout",
        "RealAgnosticResidualInteractionBlock",
        "unroll_scf",
        "energy_per_atom",
        "adamw",
        "PerAtomRMSE",
    ):
        assert expected in text


def test_list_blocks_shows_plugins(tmp_path: Path) -> None:
    plugin = tmp_path / "my_tables.py"
    plugin.write_text(PLUGIN)
    config = tmp_path / "config.yaml"
    config.write_text(f"plugins: [{plugin}]\n")
    result = run("-m", "fpmace.cli.train", "--list-blocks", "--config", str(config))
    assert result.returncode == 0, result.stderr
    assert f"MyTable  [{plugin}]" in result.stdout
    assert "A table of my own." in result.stdout
    assert "digits: whole number = 3" in result.stdout


def test_help_is_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as excinfo:
        train.main(["--help"])
    assert excinfo.value.code == 0
    text = capsys.readouterr().out
    for group in ("Run:", "Data:", "Model:", "Density and electrostatics:", "Optimizer:"):
        assert f"\n{group}\n" in text
    assert max(len(line) for line in text.splitlines()) <= 99


def test_info_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(
        "model",
        {
            "type": "MACE",
            "r_max": 3.0,
            "atomic_numbers": [1, 8],
            "atomic_energies": [0.0, 0.0],
            "avg_num_neighbors": 2.0,
            "hidden_irreps": "2x0e",
            "num_interactions": 1,
            "max_ell": 1,
            "correlation": 1,
            "radial_MLP": [4],
        },
    )
    path = tmp_path / "a.model"
    save_model(path, model, {"data": {"train_file": "water.xyz"}, "history": {"epochs": 3}})
    assert info.main([str(path)]) == 0
    text = capsys.readouterr().out
    for expected in ("kind: model", "model: MACE", "elements: [H, O]", "weights_sha256: "):
        assert expected in text
    assert "train_file: water.xyz" in text
    assert info.main([str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == sum(item.numel() for item in model.parameters())
    assert report["history"] == {"epochs": 3}
    assert report["configuration"]["r_max"] == 3.0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        (b"text", "is damaged or not a file of fpmace"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "not a readable HDF5 file"),
    ],
)
def test_info_of_an_unusable_file(
    content: bytes | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.file"
    if content is not None:
        path.write_bytes(content)
    assert info.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert expected in error
    assert len(error.splitlines()) == 1


def test_readme_blocks_can_be_printed(tmp_path: Path) -> None:
    script = tmp_path / "scripts" / "readme_block.py"
    script.parent.mkdir()
    script.write_text((REPOSITORY / "scripts" / "readme_block.py").read_text())
    (tmp_path / "README.md").write_text(
        "# Name\n\n## Run it\n\n```bash\n# a comment\nrun\n```\n\n## Test it\n\nText\n\n"
        "```bash\npytest\n```\n"
    )
    assert run(str(script), "Run it").stdout == "# a comment\nrun\n"
    assert run(str(script), "Test it").stdout == "pytest\n"
    missing = run(str(script), "Fix it")
    assert missing.returncode == 1
    assert "no fenced block under the heading 'Fix it'" in missing.stderr
