"""The passes of a loop as a trajectory and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from calculator_cases import affine_model, local_model, water_row

from fpmace.cli.visualise_scf import main
from fpmace.models.io import save_model


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    save_model(tmp_path / "fixed.model", affine_model())
    write(tmp_path / "data.xyz", [water_row(1), water_row(2)])
    return ["--configs", str(tmp_path / "data.xyz"), "--model", str(tmp_path / "fixed.model")]


def test_every_pass_is_a_frame(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "scf.xyz", tmp_path / "scf.png"
    options = ["--scf_options", "{solver: anderson, scf_tolerance: 1e-7}", "--index", "1"]
    assert main([*files, *options, "--output", str(out), "--plot", str(plot)]) == 0
    frames = read(out, ":")
    assert [atoms.info["scf_step"] for atoms in frames] == list(range(len(frames)))
    assert len(frames[0]) == 6
    assert frames[-1].info["density_change"] < 1e-7
    assert frames[-1].arrays["density_coefficients"].shape == (6, 4)
    charges = frames[-1].get_charges() if frames[-1].calc else frames[-1].arrays["charges"]
    assert np.sum(charges) == pytest.approx(0.0, abs=1e-4)
    assert plot.stat().st_size > 0
    assert f"anderson: converged after {len(frames) - 1} passes" in capsys.readouterr().out


def test_solvers_are_compared_and_failures_shown(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--solvers", "linear", "newton_krylov", "--scf_options", "{num_scf_steps: 5}"]
    assert main([*files, *options, "--output", str(tmp_path / "s.xyz")]) == 0
    text = capsys.readouterr().out
    assert "linear: not converged after 4 passes" in text
    assert (tmp_path / "s_1.xyz").exists()
    assert (tmp_path / "s_2.xyz").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "give --output, --plot or both"),
        (["--output", "x.xyz", "--index", "2"], "has no configuration 2; --index counts from 0"),
        (["--output", "x.xyz", "--solvers", "magic"], "scf_options.solver"),
        (["--output", "x.xyz", "--density_key", "q"], ""),
    ],
)
def test_mistakes_are_one_line(
    files: list[str], extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not message:
        extra = [*extra, "--scf_options", "{initial_density: from_data}"]
        message = "atoms.arrays has no 'q'"
    assert main([*files, *extra]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_local_model_has_no_loop(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "mace.model", local_model())
    argv = [*files[:2], "--model", str(tmp_path / "mace.model"), "--output", "x.xyz"]
    assert main(argv) == 2
    assert "without a self-consistent density" in capsys.readouterr().err
