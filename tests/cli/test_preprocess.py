"""``fpmace-preprocess`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read

from fpmace.cli.preprocess import main, read_settings
from fpmace.data.batch import Batch
from fpmace.data.dataset import make_loader, open_dataset
from fpmace.data.options import DataOptions
from fpmace.data.split import split_dataset
from fpmace.data.statistics import DatasetStatistics, compute_statistics

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "data" / "quickstart"
VALID, TEST = QUICKSTART / "valid.xyz", QUICKSTART / "test.xyz"


def run(*arguments: object) -> int:
    """Run in this process."""
    return main([str(item) for item in arguments])


def same(first: Batch, second: Batch) -> bool:
    """Same labels, geometry and edges."""
    return (
        torch.equal(first.positions, second.positions)
        and torch.equal(first.edge_index, second.edge_index)
        and torch.equal(first.index, second.index)
        and all(torch.equal(first.labels[n], second.labels[n]) for n in first.labels)
        and all(torch.equal(first.weights[n], second.weights[n]) for n in first.weights)
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Two processes, three shards, a split by trajectory, norms and scales."""
    folder = tmp_path_factory.mktemp("preprocess")
    config = folder / "config.yaml"
    config.write_text(
        f"train_file: {VALID}\nvalid_fraction: 0.2\nsplit_by: traj\nr_max: 3.5\nseed: 4\n"
        "heads: {xtb: {info_keys: {energy: REF_energy}, arrays_keys: {forces: REF_forces}}}\n"
        "E0s: average\nfield_feature_norms: average\nelectrostatic_pbc_method: realspace\n"
        "batch_size: 4\nmodel: FixedPoint\natom_density_scaling: average\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "preprocess_data.py"), "--config"),
            *(str(config), "--test_file", str(TEST), "--output", str(folder / "set")),
            *("--shards", "3", "--workers", "2"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "set", done.stdout, done.stderr


def test_prints_summary_statistics_and_files(output):
    folder, text, errors = output
    assert errors == "" or "fix" in errors
    for words in (
        "train: ",
        "configurations that carry each property",
        "REF_atomic_multipoles",
        "statistics of the training set",
        "field feature norms (V)",
        str(folder / "train" / "train_2.h5"),
        str(folder / "statistics.json"),
    ):
        assert words in text
    names = sorted(str(item.relative_to(folder)) for item in folder.rglob("*.*"))
    splits = [f"{s}/{s}_{k}.h5" for s in ("test", "train", "valid") for k in range(3)]
    assert names == ["statistics.json", *splits]


def test_same_batches_as_xyz(output):
    folder, _, _ = output
    xyz = open_dataset(VALID, 3.5, DataOptions(split_by="traj"))
    parts = dict(zip(("train", "valid"), split_dataset(xyz, 0.2, seed=4), strict=True))
    parts["test"] = open_dataset(TEST, 3.5)
    for name, expected in parts.items():
        found = open_dataset(folder / name, 3.5)
        assert len(found) == len(expected)
        pairs = zip(make_loader(expected, 8), make_loader(found, 8), strict=True)
        assert all(same(*pair) for pair in pairs)


def test_statistics_are_those_of_the_training_part(output):
    folder, _, _ = output
    found = DatasetStatistics.load(folder / "statistics.json")
    expected = compute_statistics(open_dataset(folder / "train", 3.5), "average")
    assert len(found.field_feature_norms) == 4
    assert found.electrostatics["pbc_handling"] == "realspace"
    assert found.rms == expected.rms
    assert found.atomic_energies == expected.atomic_energies
    assert found.fermi_level_offset == expected.fermi_level_offset
    assert json.loads((folder / "statistics.json").read_text())["r_max"] == 3.5


def test_number_of_processes_and_shards_change_nothing(tmp_path, output):
    folder, _, _ = output
    assert run("--train_file", TEST, "--r_max", 3.5, "--output", tmp_path) == 0
    one = make_loader(open_dataset(tmp_path / "train", 3.5), 8)
    many = make_loader(open_dataset(folder / "test", 3.5), 8)
    assert all(same(*pair) for pair in zip(one, many, strict=True))


def test_a_second_run_replaces_the_first(tmp_path):
    assert run("--train_file", TEST, "--output", tmp_path, "--shards", 4) == 0
    assert run("--train_file", VALID, "--output", tmp_path, "--shards", 2) == 0
    assert sorted(item.name for item in (tmp_path / "train").iterdir()) == [
        "train_0.h5",
        "train_1.h5",
    ]
    expected = len(read(VALID, ":"))
    assert len(open_dataset(tmp_path / "train", 5.0)) == expected


def test_options_of_the_training_are_passed_over_and_flags_win(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("h5_prefix: from_yaml\nr_max: 3.0\nlr: 0.1\ntrain_file: a.xyz\n")
    settings = read_settings(["--config", str(config), "--r_max", "4.5"])
    assert settings["output"] == "from_yaml"
    assert settings["r_max"] == 4.5


def test_without_statistics(tmp_path):
    arguments = ("--train_file", VALID, "--output", tmp_path, "--compute_statistics", "false")
    assert run(*arguments) == 0
    assert not (tmp_path / "statistics.json").exists()


def bad(tmp_path: Path, name: str) -> list[object]:
    """Arguments of a wrong call."""
    broken = tmp_path / "broken.xyz"
    text = VALID.read_text()
    nan = text.replace("REF_energy=", "REF_energy=nan x=", 2).replace("nan x=", "", 1)
    broken.write_text(nan if name == "nan" else text[: len(text) // 2])
    config = tmp_path / "c.yaml"
    config.write_text("train_fil: a.xyz\n" if name == "yaml key" else "heads: {a: {}, b: {}}\n")
    train: list[object] = ["--train_file", VALID, "--output", tmp_path / "out"]
    return {
        "no file": ["--r_max", 3],
        "missing file": ["--train_file", tmp_path / "none.xyz"],
        "nan": ["--train_file", broken, "--num_process", 2, "--output", tmp_path / "out"],
        "truncated": ["--train_file", broken],
        "unknown flag": [*train, "--rmax", 3],
        "yaml key": ["--config", config],
        "two heads": [*train, "--config", config],
        "r_max": [*train, "--r_max", "far"],
        "shards": [*train, "--shards", 0],
        "both": [*train, "--valid_file", TEST, "--valid_fraction", 0.1],
        "split_by": [*train, "--valid_fraction", 0.1, "--split_by", "trajectory"],
        "E0s": [*train, "--E0s", "IsolatedAtom"],
        "pbc": [*train, "--electrostatic_pbc_method", "slab"],
        "config type": [*train, "--config_type_weights", "{watr: 2.0}"],
    }[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no file", ["--train_file", "missing"]),
        ("missing file", ["none.xyz", "no such file"]),
        ("nan", ["broken.xyz: configuration 1", "REF_energy", "not finite"]),
        ("truncated", ["broken.xyz: configuration", "truncated"]),
        ("unknown flag", ["--rmax"]),
        ("yaml key", ["train_fil", "c.yaml:1", "'train_file'"]),
        ("two heads", ["configuration 0", "names no head", "a, b"]),
        ("r_max", ["r_max", "'far'"]),
        ("shards", ["shards", "0"]),
        ("both", ["valid_file", "valid_fraction"]),
        ("split_by", ["valid.xyz", "'trajectory'"]),
        ("E0s", ["IsolatedAtom", "H, O, Na, Cl"]),
        ("pbc", ["valid.xyz: configuration 0", "slab"]),
        ("config type", ["config_type_weights", "watr"]),
    ],
)
def test_wrong_calls(tmp_path, capsys, name, words):
    assert run(*bad(tmp_path, name)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert all(word in error for word in words), error
    if name != "E0s":
        assert not list(tmp_path.rglob("*.h5"))


def test_help_is_grouped(capsys):
    with pytest.raises(SystemExit) as caught:
        run("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(title in text for title in ("Files:", "Output:", "Statistics:", "--h5_prefix"))


def test_forces_survive_the_round_trip(output):
    folder, _, _ = output
    frames = read(TEST, ":")
    dataset = open_dataset(folder / "test", 3.5)
    item = dataset[5]
    np.testing.assert_array_equal(item.labels["forces"], frames[item.index].arrays["REF_forces"])
