"""``fpmace-response`` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from small_models import ELEMENTS, SMALL, SMALL_FIXED_POINT

from fpmace.cli import response
from fpmace.models.io import save_model
from fpmace.observables.response import compute_response
from fpmace.registry import build
from fpmace.testing.systems import atoms_batch, random_model, scale_response, water_box

REPOSITORY = Path(__file__).parents[2]


def structures() -> list[Atoms]:
    molecule, box = water_box((1, 1, 1), pbc=False), water_box((1, 1, 2), pbc=True)
    molecule.info["total_charge"] = 1.0
    molecule.info["external_field"] = np.array([0.0, 0.0, 0.1])
    box.info["charge_of_mine"] = -1.0
    molecule.info["charge_of_mine"] = 0.5
    return [molecule, box]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("response")
    model = random_model(**SMALL_FIXED_POINT)
    scale_response(model, atoms_batch(structures(), 3.0), -0.7)
    save_model(place / "water.model", model)
    local = build("model", {"type": "MACE", **SMALL, **ELEMENTS, "avg_num_neighbors": 3.0})
    save_model(place / "local.model", local)
    ase.io.write(place / "water.xyz", structures())
    return place


def arguments(folder: Path, output: str, *more: str, model: str = "water.model") -> list[str]:
    files = ["--model", model, "--configs", "water.xyz", "--output", output]
    places = [str(folder / item) if not item.startswith("--") else item for item in files]
    return [*places, *more]


def test_script_writes_extended_xyz(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/response.py", *arguments(folder, "out.xyz")],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 structures: polarizability, born_charges, fukui" in done.stdout
    written = ase.io.read(folder / "out.xyz", ":")
    model = random_model(**SMALL_FIXED_POINT)
    scale_response(model, atoms_batch(structures(), 3.0), -0.7)
    batch = atoms_batch(ase.io.read(folder / "water.xyz", ":"), 3.0)
    expected = compute_response(model, batch, ["polarizability", "born_charges", "fukui"])
    for graph, atoms in enumerate(written):
        found = atoms.info["response_polarizability"]
        np.testing.assert_allclose(found, expected.polarizability[graph], atol=1e-9)
        assert atoms.info["response_hardness"] == pytest.approx(float(expected.hardness[graph]))
    born = np.concatenate([atoms.arrays["response_born_charges"] for atoms in written])
    np.testing.assert_allclose(born.reshape(-1, 3, 3), expected.born_charges, atol=1e-7)
    assert written[0].info["response_open_directions"] == [True, True, True]
    assert written[1].info["response_open_directions"] == [False, False, False]
    assert written[0].info["response_total_charge"] == pytest.approx(1.0)


def test_archive_holds_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert response.main(arguments(folder, "out.npz", "--properties", "all")) == 0
    with np.load(folder / "out.npz") as data:
        shapes = {key: data[key].shape for key in data}
    assert shapes["1/response_hessian"] == (18, 18)
    assert shapes["1/response_density_by_positions"] == (6, 4, 6, 3)
    assert shapes["0/response_modes"] == (6, 3, 3)
    assert shapes["1/response_intensities"] == (15,)
    assert "out.npz" in capsys.readouterr().out


def test_json_lines_at_constant_fermi_level(folder: Path) -> None:
    options = "{constant_charge: false, initial_fermi_level: 0.3}"
    more = ("--properties", "fukui,vibrations", "--scf_options", options, "--info_prefix", "")
    assert response.main(arguments(folder, "out.json", *more, "--batch_size", "1")) == 0
    lines = [json.loads(line) for line in (folder / "out.json").read_text().splitlines()]
    assert [line["fermi_level"] for line in lines] == [0.3, 0.3]
    assert len(lines[0]["fukui"]) == 3


def test_what_a_model_reads_of_every_atom_is_read(folder: Path) -> None:
    options = {**SMALL, **ELEMENTS, "avg_num_neighbors": 3.0, "formal_charges_from_data": True}
    model = build("model", {"type": "FixedChargeBaselinedMACE", **options})
    save_model(folder / "formal.model", model)
    frames = structures()
    for atoms in frames:
        atoms.arrays["my_charges"] = np.where(atoms.numbers == 8, -0.8, 0.4)
    ase.io.write(folder / "formal.xyz", frames)
    more = ("--properties", "born_charges", "--configs", str(folder / "formal.xyz"))
    given = arguments(folder, "formal_out.xyz", *more, model="formal.model")
    assert response.main([*given, "--formal_charges_key", "my_charges"]) == 0
    found = ase.io.read(folder / "formal_out.xyz", 0)
    born = found.arrays["response_born_charges"].reshape(-1, 3, 3)
    np.testing.assert_allclose(born[:, 0, 0], found.arrays["my_charges"], atol=1e-9)
    assert response.main(given) == 2


def test_keys_and_boundary_method(folder: Path) -> None:
    more = ("--properties", "fukui", "--info_prefix", "", "--total_charge_key", "charge_of_mine")
    method = ("--pbc_handling", "mixed_periodic")
    assert response.main(arguments(folder, "out.jsonl", *more, *method)) == 0
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [line["total_charge"] for line in lines] == pytest.approx([0.5, -1.0])


def test_local_model_has_vibrations(folder: Path) -> None:
    more = ("--properties", "vibrations")
    assert response.main(arguments(folder, "local.xyz", *more, model="local.model")) == 0
    assert len(ase.io.read(folder / "local.xyz", "0").info["response_frequencies"]) == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--properties", "polarisability"), "unknown 'polarisability'; did you mean 'polariz"),
        (("--properties", "hessian"), "extended XYZ cannot hold 'hessian'"),
        (("--scf_options", "charge: 1"), "--scf_options.charge: no SCF setting 'charge'"),
        (("--scf_options", "num_scf_steps: 2"), "water.xyz: configurations 0-1: SCF not conv"),
        (("--total_charge_key", "none"), "water.xyz: configuration 0: lacks none (total_charge)"),
        (("--pbc_handling", "realspace"), "configuration 1: pbc TTT does not suit"),
        (("--pbc_handling", "real"), "got 'real'; did you mean 'realspace'?"),
        (("--device", "cuda:77"), "'cuda:77' is not available"),
        (("--batch_size", "0"), "--batch_size: must be 1 or more, got 0"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert response.main(arguments(folder, "bad.xyz", *more)) == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1
    assert not (folder / "bad.xyz").exists()


def test_wrong_files_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert response.main(arguments(folder, "out.txt")) == 2
    assert "the suffix says the format" in capsys.readouterr().err
    assert response.main(arguments(folder, "out.xyz", model="missing.model")) == 2
    assert "no such file" in capsys.readouterr().err
    assert response.main(arguments(folder, "out.xyz", model="local.model")) == 2
    assert "'born_charges' needs a density, which a" in capsys.readouterr().err


def test_masses_of_the_file_are_used(folder: Path) -> None:
    atoms = structures()[0]
    atoms.set_masses([16.0, 1.008, 1.008])
    heavy = atoms.copy()
    heavy.set_masses([16.0, 2.014, 2.014])
    ase.io.write(folder / "heavy.xyz", [atoms, heavy], columns=["symbols", "positions", "masses"])
    files = ["--model", str(folder / "local.model"), "--configs", str(folder / "heavy.xyz")]
    output = ["--output", str(folder / "heavy.npz"), "--properties", "vibrations"]
    assert response.main([*files, *output, "--remove", "none"]) == 0
    with np.load(folder / "heavy.npz") as data:
        light, heavier = (np.abs(data[f"{k}/response_frequencies"]).max() for k in (0, 1))
    assert 1.2 < light / heavier < 1.45
