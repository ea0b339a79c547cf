"""Models with the architectures of published ones: numbers, files, dynamics, training."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

from fpmace.calculators.base import ModelCalculator
from fpmace.cli.convert import main as convert
from fpmace.config.load import resolve
from fpmace.conversion.convert import convert_file
from fpmace.models.io import load_model
from fpmace.training.run import run_training
from verification.foundation import check_foundation

DATA = Path(__file__).parent / "data" / "foundation"
NAMES = sorted(path.name.removesuffix(".model.xz") for path in DATA.glob("*.model.xz"))
MULTIHEAD = {"mh1_finetuned": "Default", "omol_embedding_readout": "head_1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored models, as their package wrote them, with their numbers."""
    place = tmp_path_factory.mktemp("foundation")
    for path in DATA.iterdir():
        if path.suffix == ".xz":
            (place / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
        else:
            shutil.copy(path, place)
    return place


def structures(folder: Path, name: str) -> dict[str, Atoms]:
    frames = ase.io.read(folder / f"{name}.extxyz", ":")
    return {frame.info["name"]: frame for frame in frames}


def reference(name: str, system: str, head: str) -> dict[str, np.ndarray]:
    start = f"{system}/{head}/"
    with np.load(DATA / f"{name}.outputs.npz") as data:
        return {key.removeprefix(start): data[key] for key in data if key.startswith(start)}


def test_every_stored_number_is_reproduced(folder: Path) -> None:
    rows = check_foundation(folder)
    assert {row.case.split()[0] for row in rows} == set(NAMES)
    assert [row for row in rows if row.status != "pass"] == []
    exact = [row for row in rows if row.tolerance == 1e-9]
    assert max(row.max_error for row in exact) < 1e-12


def test_a_jump_at_the_cutoff_is_said(folder: Path) -> None:
    notes = {name: convert_file(folder / f"{name}.model").notes for name in NAMES}
    assert [name for name, said in notes.items() if said] == ["mh_bias_two_heads"]
    assert notes["mh_bias_two_heads"][0].startswith("jump at r_max")


WITHOUT_PACKAGES = """
import sys
for name in ("mace", "cuequivariance", "openequivariance", "graph_longrange"):
    sys.modules[name] = None
from fpmace.models.io import load_model
print(load_model(sys.argv[1]).config["type"])
"""


@pytest.mark.parametrize("name", NAMES)
def test_files_convert_and_open_again(folder: Path, name: str, tmp_path: Path) -> None:
    target = tmp_path / "converted.model"
    assert convert([str(folder / f"{name}.model"), str(target), "--quiet"]) == 0
    converted, loaded = convert_file(folder / f"{name}.model").model, load_model(target)
    assert loaded.heads == converted.heads
    for key, value in converted.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_converted_files_open_without_the_packages(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "converted.model"
    convert([str(folder / "mh1_finetuned.model"), str(target), "--quiet"])
    command = [sys.executable, "-c", WITHOUT_PACKAGES, str(target)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "ScaleShiftMACE"


@pytest.mark.parametrize(("name", "head"), MULTIHEAD.items())
def test_the_calculator_of_a_head(folder: Path, name: str, head: str) -> None:
    calculator = ModelCalculator(convert_file(folder / f"{name}.model").model, head=head)
    systems = structures(folder, name)
    for system, atoms in systems.items():
        atoms.calc = calculator
        known = reference(name, system, head)
        assert atoms.get_potential_energy() == pytest.approx(known["energy"][0], abs=1e-9)
        np.testing.assert_allclose(atoms.get_forces(), known["forces"], atol=1e-8)


@pytest.mark.parametrize("name", ["mh1_finetuned", "agnesi_chebyshev", "soft_gaussian_zbl"])
def test_dynamics_conserve_the_energy(folder: Path, name: str) -> None:
    model = convert_file(folder / f"{name}.model").model
    atoms = structures(folder, name)["molecule"]
    atoms.calc = ModelCalculator(model, head=model.heads[-1])

    def drift(step: float, n_steps: int) -> float:
        moving = atoms.copy()
        moving.calc = atoms.calc
        rng = np.random.default_rng(0)
        moving.set_velocities(0.01 * rng.normal(size=(len(moving), 3)))
        energies = []
        dynamics = VelocityVerlet(moving, timestep=step * units.fs)
        dynamics.attach(lambda: energies.append(moving.get_total_energy()))
        dynamics.run(n_steps)
        return float(np.ptp(energies))

    coarse, fine = drift(0.2, 20), drift(0.1, 40)
    assert fine < 0.35 * coarse  # the error of the integrator falls with the square of the step
    assert fine < 1e-2


@pytest.mark.parametrize("name", ["mh1_finetuned", "omol_embedding_readout", "trained_radial"])
def test_training_goes_on_from_a_converted_model(folder: Path, name: str, tmp_path: Path) -> None:
    target = tmp_path / "start.model"
    convert([str(folder / f"{name}.model"), str(target), "--quiet"])
    heads = load_model(target).heads
    frames = []
    for system, atoms in structures(folder, name).items():
        if system == "compressed":
            continue
        for head in heads:
            known, frame = reference(name, system, head), atoms.copy()
            frame.info.update(REF_energy=float(known["energy"][0]) + 0.1, head=head)
            frame.info.setdefault("total_charge", 0.0)
            frame.arrays["REF_forces"] = known["forces"]
            frames.append(frame)
    ase.io.write(tmp_path / "train.xyz", frames)
    stage = {"start": 0, "end": 0, "lr": 1e-3, "loss": {"energy_per_atom": 1.0, "forces": 1.0}}
    options = {"heads": {head: {} for head in heads}} if len(heads) > 1 else {}
    result = run_training(
        resolve(
            {
                "train_file": str(tmp_path / "train.xyz"),
                "valid_file": str(tmp_path / "train.xyz"),
                "init_from": str(target),
                "work_dir": str(tmp_path / "run"),
                "batch_size": 2,
                "min_distance": 0.1,
                "train_schedule": {0: stage},
                **options,
            }
        )
    )
    assert result.model_path is not None
    before, after = load_model(target), load_model(result.model_path)
    changed = [
        name
        for name, value in after.named_parameters()
        if not torch.equal(value, before.state_dict()[name])
    ]
    assert len(changed) > 0.8 * len([p for p in after.parameters() if p.numel()])
