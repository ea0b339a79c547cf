"""A user's day: train with a rule of their own, look at the files, repeat, be interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ase.io import read, write

from fpmace.models.io import read_model_file

REPOSITORY = Path(__file__).parents[2]
PLUGIN = REPOSITORY / "docs" / "examples" / "my_blocks.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

CONFIG = """\
name: tiny
train_file: train.xyz
valid_file: valid.xyz
E0s: IsolatedAtom
r_max: 3.0
hidden_irreps: 2x0e+2x1o
max_ell: 1
correlation: 1
num_radial_basis: 4
radial_MLP: [4]
MLP_irreps: 4x0e
batch_size: 4
fixedpoint_update_config: {type: GatedLinearUpdate, strength: 0.05}
scf_options: {num_scf_steps: 20}
train_schedule:
  0:
    name: direct
    start: 0
    end: 3
    loss: {atomic_multipoles: 10.0, energy_per_atom: 1.0, forces: 1.0}
    lr: 0.01
    fixed_point_training_options: {mode: direct}
  1:
    name: unroll
    start: 4
    end: 13
    loss: {atomic_multipoles: 10.0, energy_per_atom: 1.0, forces: 1.0}
    lr: 0.001
    fixed_point_training_options:
      mode: unroll_scf
      scf: {num_scf_steps: 3, mixing_parameter: 0.3, initial_density: from_data,
            initial_fermi_level: from_data}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small data and a configuration."""
    folder = tmp_path_factory.mktemp("user")
    frames = read(REPOSITORY / "data" / "quickstart" / "train.xyz", ":")
    atoms = [item for item in frames if item.info.get("config_type") == "IsolatedAtom"]
    waters = [item for item in frames if item.info.get("config_type") in ("water_w1", "water_w2")]
    write(folder / "train.xyz", [*atoms, *waters[:8]])
    write(folder / "valid.xyz", waters[8:11])
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "scripts" / "run_train.py"), *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )


def ours(*extra: str) -> Sequence[str]:
    return ("--config", "config.yaml", "--plugins", str(PLUGIN), *extra)


@pytest.fixture(scope="module")
def finished(workspace: Path) -> subprocess.CompletedProcess[str]:
    result = run(workspace, *ours("--work_dir", "first"))
    assert result.returncode == 0, result.stderr
    return result


def checksum(path: Path) -> Any:
    return read_model_file(path).metadata["checksum"]


def info(path: Path) -> Any:
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "info.py"), "--json", str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    return json.loads(result.stdout)


def test_last_line_says_where_the_model_is(
    workspace: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    assert finished.stdout.strip().splitlines()[-1] == "saved model: first/tiny.model"
    assert (workspace / "first" / "tiny.model").is_file()


def test_rule_of_a_plugin_is_saved_and_missed(
    workspace: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    path = workspace / "first" / "tiny.model"
    report = info(path)
    assert report["plugins"] == [str(PLUGIN)]
    assert "update_rule: GatedLinearUpdate" in report["parts"]
    assert report["elements"][:2] == ["H", "O"]
    load = "from fpmace.models.io import load_model; load_model({!r}{})"
    bare = [sys.executable, "-c", load.format(str(path), "")]
    result = subprocess.run(bare, capture_output=True, text=True, env=ENVIRONMENT)
    assert f"needs the update_rule 'GatedLinearUpdate' from the plugin '{PLUGIN}'" in result.stderr
    given = [sys.executable, "-c", load.format(str(path), f", plugins=[{str(PLUGIN)!r}]")]
    subprocess.run(given, check=True, env=ENVIRONMENT)


def last_epoch(folder: Path) -> int:
    found = [int(path.stem.rpartition("-")[2]) for path in folder.glob("tiny_epoch-*.pt")]
    return max(found, default=-1)


def test_checkpoint_can_be_described(
    workspace: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    folder = workspace / "first" / "checkpoints"
    path = folder / f"tiny_epoch-{last_epoch(folder)}.pt"
    report = info(path)
    assert (report["kind"], report["epoch"], report["stage"]) == ("checkpoint", 13, 1)


def test_resolved_configuration_repeats_the_run(
    workspace: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    (resolved,) = (workspace / "first").glob("*config.yaml")
    result = run(workspace, "--config", str(resolved), "--work_dir", "again")
    assert result.returncode == 0, result.stderr
    assert checksum(workspace / "again" / "tiny.model") == checksum(
        workspace / "first" / "tiny.model"
    )


def test_dry_run_reports_and_leaves_no_model(workspace: Path) -> None:
    result = run(workspace, *ours("--work_dir", "dry", "--dry_run"))
    assert result.returncode == 0, result.stderr
    for expected in ("parameters", "configurations", "MiB kept for the backward pass"):
        assert expected in result.stdout + result.stderr
    assert not (workspace / "dry" / "tiny.model").exists()


@pytest.mark.parametrize("epoch", [1, 5])
def test_killed_and_restarted_run_ends_with_the_same_weights(
    epoch: int, workspace: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    arguments = ours("--work_dir", f"killed_{epoch}")
    process = subprocess.Popen(
        command(*arguments), cwd=workspace, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    folder = workspace / f"killed_{epoch}" / "checkpoints"
    deadline = time.monotonic() + 120
    while last_epoch(folder) < epoch and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    model = workspace / f"killed_{epoch}" / "tiny.model"
    assert not model.exists(), "the run was over before it could be killed"
    result = run(workspace, *arguments, "--restart_latest")
    assert result.returncode == 0, result.stderr
    assert checksum(model) == checksum(workspace / "first" / "tiny.model")


def test_missing_data_file_is_one_line(workspace: Path) -> None:
    result = run(workspace, *ours("--train_file", "nowhere.xyz"))
    assert result.returncode == 2
    (line,) = [item for item in result.stderr.splitlines() if item.startswith("error: ")]
    assert "nowhere.xyz" in line
    assert "Traceback" not in result.stderr
