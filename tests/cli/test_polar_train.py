"""PolarMACE as a user trains it: missing inputs, one pass, then on to self-consistency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from data_cases import free_atom, water, write_xyz

from fpmace.cli import evaluate, preprocess, response
from fpmace.config.load import resolve
from fpmace.errors import DataError
from fpmace.models.io import load_model
from fpmace.training.run import run_training

MODEL = {
    "type": "PolarMACE",
    "r_max": 3.0,
    "hidden_irreps": "4x0e+4x1o",
    "MLP_irreps": "4x0e",
    "max_ell": 1,
    "correlation": 2,
    "num_bessel": 4,
    "radial_MLP": [8],
}
LOSS = {"energy_per_atom": 1.0, "forces": 1.0, "charges": 1.0, "spins": 1.0, "dipole": 1.0}
SCF = {
    "mode": "implicit",
    "scf": {"scf_tolerance": 1e-5, "num_scf_steps": 50, "mixing_parameter": 0.3},
}


def structures(*, spin: bool = True) -> list[Any]:
    frames = [free_atom("H", -13.0), free_atom("O", -400.0)]
    for seed in range(5):
        atoms = water(seed=seed, total_charge=float(seed % 2))
        atoms.arrays["REF_spins"] = np.array([seed % 2, 0.0, 0.0])
        if spin:
            atoms.info["total_spin"] = 1 + seed % 2
        frames.append(atoms)
    return frames


def train(folder: Path, name: str, **options: Any) -> Path:
    values = {
        "train_file": str(folder / "train.xyz"),
        "work_dir": str(folder / name),
        "valid_fraction": 0.4,
        "batch_size": 2,
        "E0s": "IsolatedAtom",
        "max_num_epochs": 1,
        "loss": LOSS,
        **options,
    }
    result = run_training(resolve({k: v for k, v in values.items() if v is not None}))
    assert result.model_path is not None
    return result.model_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a model of one pass."""
    folder = tmp_path_factory.mktemp("polar")
    write_xyz(folder / "train.xyz", structures())
    write_xyz(folder / "untold.xyz", structures(spin=False))
    train(folder, "steps", model=MODEL)
    return folder


def test_a_model_of_one_pass_goes_on_to_self_consistency(trained: Path) -> None:
    model = {"type": "PolarMACE", "recursion": "fixed_point"}
    start = str(trained / "steps" / "fpmace.model")
    path = train(
        trained,
        "iterated",
        model=model,
        init_from=start,
        fixed_point_training_options=SCF,
        E0s=None,
    )
    found, before = load_model(path), load_model(start)
    assert found.solves_self_consistency
    assert not before.solves_self_consistency
    assert found.state_dict().keys() == before.state_dict().keys()
    out = trained / "eval.xyz"
    arguments = ["--configs", str(trained / "train.xyz"), "--model", str(path)]
    arguments += ["--default_total_spin", "1", "--output", str(out)]
    assert evaluate.main(arguments) == 0
    for atoms in ase.io.read(out, ":")[2:]:
        assert atoms.arrays["MACE_charges"].sum() == pytest.approx(
            atoms.info["total_charge"], abs=1e-6
        )
        assert atoms.arrays["MACE_spins"].sum() == pytest.approx(
            atoms.info["total_spin"] - 1, abs=1e-6
        )


def test_a_training_must_be_told_the_spin(trained: Path) -> None:
    file = str(trained / "untold.xyz")
    with pytest.raises(DataError, match=r"lacks total_spin.+default_total_spin"):
        train(trained, "untold", model=MODEL, train_file=file)
    train(trained, "told", model=MODEL, train_file=file, default_total_spin=1)


def test_preprocessed_data_must_be_told_the_spin(trained: Path) -> None:
    target = trained / "data"
    arguments = ["--train_file", str(trained / "untold.xyz"), "--output", str(target)]
    assert preprocess.main([*arguments, "--r_max", "3.0", "--E0s", "IsolatedAtom"]) == 0
    options = {"model": MODEL, "train_file": str(target / "train"), "E0s": "IsolatedAtom"}
    with pytest.raises(DataError, match=r"5 of 5 configurations lack total_spin.+default_total_"):
        train(trained, "h5", **options)
    train(trained, "h5_told", **options, default_total_spin=1)
    assert preprocess.main([*arguments, "--r_max", "3.0", "--default_total_spin", "1"]) == 0
    train(trained, "h5_given", **options)


@pytest.mark.parametrize("command", [evaluate, response])
def test_other_commands_must_be_told_the_spin(
    trained: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(trained / "steps" / "fpmace.model")
    arguments = ["--configs", str(trained / "untold.xyz"), "--model", model]
    arguments += ["--output", str(trained / "out.xyz")]
    arguments += ["--properties", "polarizability"] if command is response else []
    assert command.main([*arguments, "--default_total_charge", "0"]) == 2
    assert "total_spin" in capsys.readouterr().err
    assert command.main([*arguments, "--default_total_spin", "1"]) == 0
    assert command.main([*arguments, "--default_total_spin", "0.5"]) == 2
    assert "1 or more" in capsys.readouterr().err
