"""Wrong data files: each gives one line with file, configuration and key."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from fpmace.data.dataset import open_dataset
from fpmace.data.extxyz import read_configurations
from fpmace.data.hdf5_writer import open_shard
from fpmace.data.info import DatasetInfo, check_config_types
from fpmace.data.keys import KeyMapping
from fpmace.data.neighborhood import neighborhood
from fpmace.data.options import DataOptions
from fpmace.errors import DataError

FRAME = """2
Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=-1.0 total_charge=0.0 pbc="F F F"
O 0.0 0.0 0.0 0.1 0.2 0.3
H 0.0 0.0 1.0 0.1 0.2 0.3
"""


def frames(text: str) -> str:
    """A good frame, then the one under test (configuration 1)."""
    return FRAME + text


def swap(old: str, new: str) -> str:
    """The good frame with one change."""
    assert old in FRAME
    return frames(FRAME.replace(old, new))


def add(text: str) -> str:
    """The good frame with something more on its comment line."""
    return swap(' pbc="F F F"', f' pbc="F F F" {text}')


def boxed(pbc: str, lattice: str = "4 0 0 0 4 0 0 0 4") -> str:
    """The good frame with a cell."""
    return swap('pbc="F F F"', f'pbc="{pbc}" Lattice="{lattice}"')


PLAIN = DataOptions()
ONE = "bad.xyz: configuration 1"

TEXT_CASES = {
    "nan energy": (swap("-1.0", "nan"), PLAIN, [ONE, "REF_energy", "not finite"]),
    "infinite force": (
        swap("1.0 0.1 0.2 0.3", "1.0 0.1 inf 0.3"),
        PLAIN,
        [ONE, "REF_forces", "finite", "atom 1"],
    ),
    "nan position": (swap("H 0.0 0.0 1.0", "H nan 0.0 1.0"), PLAIN, [ONE, "positions"]),
    "energy is a word": (swap("-1.0", "low"), PLAIN, [ONE, "REF_energy", "'low'"]),
    "energy is a flag": (swap("=-1.0", "=T"), PLAIN, [ONE, "REF_energy", "not numeric"]),
    "energy is a vector": (swap("-1.0", '"1 2 3"'), PLAIN, [ONE, "REF_energy", "3 numbers"]),
    "forces on the comment line": (
        swap("REF_forces:R:3", "f:R:3").replace(
            "REF_energy=-1.0 t", 'REF_forces="1 2 3" REF_energy=-1.0 t'
        ),
        PLAIN,
        [ONE, "REF_forces", "per atom"],
    ),
    "forces of two columns": (
        swap("REF_forces:R:3", "REF_forces:R:2:x:R:1"),
        PLAIN,
        [ONE, "REF_forces", "(2, 2)", "(2, 3)"],
    ),
    "stress of five numbers": (
        add('REF_stress="1 2 3 4 5"'),
        PLAIN,
        [ONE, "REF_stress", "5 numbers", "9"],
    ),
    "dipole without weight": (
        add('REF_dipole="1 2 3"'),
        PLAIN,
        [ONE, "config_dipole_weight", '"1 1 1"'],
    ),
    "dipole weight is one number": (
        add('REF_dipole="1 2 3" config_dipole_weight=1'),
        PLAIN,
        [ONE, "config_dipole_weight", "expected 3"],
    ),
    "negative weight": (add("config_weight=-1"), PLAIN, [ONE, "config_weight", "negative"]),
    "weight is a word": (
        add("config_energy_weight=high"),
        PLAIN,
        [ONE, "config_energy_weight", "'high'"],
    ),
    "too few multipoles": (
        swap("REF_forces:R:3", "REF_atomic_multipoles:R:3"),
        PLAIN,
        [ONE, "REF_atomic_multipoles", "3 columns", "atomic_multipoles_max_l"],
    ),
    "fractional molecule number": (
        swap("REF_forces:R:3", "cluster_id:R:1:x:R:2"),
        PLAIN,
        [ONE, "cluster_id", "whole numbers"],
    ),
    "required charge is missing": (
        swap("total_charge=0.0 ", ""),
        DataOptions(required=("total_charge",)),
        [ONE, "total_charge", "required", "REF_energy"],
    ),
    "periodic without a cell": (
        swap("F F F", "T T T"),
        PLAIN,
        [ONE, "Lattice", "no vector a"],
    ),
    "periodic without one vector": (
        boxed("T T T", "4 0 0 0 4 0 0 0 0"),
        PLAIN,
        [ONE, "Lattice", "no vector c"],
    ),
    "flat cell": (
        boxed("T T T", "4 0 0 0 4 0 4 4 0"),
        PLAIN,
        [ONE, "Lattice", "linearly dependent"],
    ),
    "low density": (
        boxed("T T T", "30 0 0 0 30 0 0 0 30"),
        PLAIN,
        [ONE, "13500.0 A^3 per atom", "allow_low_density_pbc"],
    ),
    "atoms on top of each other": (
        swap("H 0.0 0.0 1.0", "H 0.0 0.0 0.01"),
        PLAIN,
        [ONE, "positions", "atoms 0 and 1", "0.010 A"],
    ),
    "image on top of an atom": (
        boxed("F F T", "4 0 0 0 4 0 0 0 1.05"),
        PLAIN,
        [ONE, "atoms 0 and 1", "periodic image"],
    ),
    "element not in the model": (
        swap("H 0.0", "Na 0.0"),
        DataOptions(elements=(1, 8)),
        [ONE, "species", "Na", "H, O"],
    ),
    "element that is none": (swap("H 0.0", "X 0.0"), PLAIN, [ONE, "element X"]),
    "element that is unknown": (swap("H 0.0", "Hh 0.0"), PLAIN, [ONE, "Hh"]),
    "slab for realspace": (
        boxed("T T F"),
        DataOptions(pbc_handling="realspace"),
        ["pbc TTF", "realspace", "slab"],
    ),
    "bulk for slab": (
        boxed("T T T"),
        DataOptions(pbc_handling="slab"),
        ["configuration 0", "FFF"],
    ),
    "wire for auto": (
        boxed("T F F"),
        DataOptions(pbc_handling="auto"),
        [ONE, "pbc TFF", "auto"],
    ),
    "molecule without a box": (
        FRAME,
        DataOptions(pbc_handling="molecule_in_box"),
        ["bad.xyz: configuration 0", "Lattice", "realspace"],
    ),
    "molecule in a box that is no cube": (
        boxed("F F F", "4 0 0 0 4 0 0 0 5").removeprefix(FRAME),
        DataOptions(pbc_handling="mixed_periodic"),
        ["bad.xyz: configuration 0", "cubic"],
    ),
    "tilted slab": (
        boxed("T T F", "4 0 0 0 4 0 1 0 5").removeprefix(FRAME),
        DataOptions(pbc_handling="slab"),
        ["bad.xyz: configuration 0", "c along z"],
    ),
    "truncated": (FRAME + FRAME[:-28], PLAIN, [ONE, "truncated", "2 atoms", "1 found"]),
    "no atom count": (FRAME + "two\n", PLAIN, [ONE, "atom count", "'two'"]),
    "empty line": (FRAME + "\n" + FRAME, PLAIN, [ONE, "empty line"]),
    "missing column": (swap("0.2 0.3\nH", "\nH"), PLAIN, [ONE, "5 columns", "announces 7"]),
    "no atoms": (FRAME + "0\n\n", PLAIN, [ONE, "no atoms"]),
    "empty file": ("", PLAIN, ["bad.xyz", "no configurations"]),
    "key found nowhere": (
        FRAME,
        DataOptions(keys=KeyMapping.from_heads({"h": {"info_keys": {"energy": "REF_enrgy"}}})),
        ["bad.xyz", "heads.h", "REF_enrgy", "'REF_energy'"],
    ),
    "no label": (
        FRAME.replace("REF_", "DFT_"),
        PLAIN,
        ["bad.xyz", "no configuration carries a label", "DFT_energy", "heads"],
    ),
    "only free atoms": (
        "1\nProperties=species:S:1:pos:R:3 config_type=IsolatedAtom REF_energy=1.0\nH 0 0 0\n",
        PLAIN,
        ["bad.xyz", "only IsolatedAtom"],
    ),
    "free atom of two": (add("config_type=IsolatedAtom"), PLAIN, [ONE, "one atom, has 2"]),
    "two energies of a free atom": (
        FRAME
        + "1\nProperties=species:S:1:pos:R:3 config_type=IsolatedAtom REF_energy=1.0\nH 0 0 0\n"
        + "1\nProperties=species:S:1:pos:R:3 config_type=IsolatedAtom REF_energy=2.0\nH 0 0 0\n",
        PLAIN,
        ["bad.xyz: configuration 2", "IsolatedAtom H", "2.0", "1.0"],
    ),
}


def one_line(path: Path, options: DataOptions, words: list[str], r_max: float = 3.0) -> None:
    """Opening fails with a DataError of one line that holds the words."""
    with pytest.raises(DataError) as caught:
        open_dataset(path, r_max, options)
    message = str(caught.value)
    assert "\n" not in message
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"


@pytest.mark.parametrize("name", TEXT_CASES)
def test_wrong_xyz(tmp_path, name):
    text, options, words = TEXT_CASES[name]
    path = tmp_path / "bad.xyz"
    path.write_text(text)
    one_line(path, options, words)


def test_the_good_frame_is_good(tmp_path):
    path = tmp_path / "good.xyz"
    path.write_text(FRAME + FRAME)
    assert len(open_dataset(path, 3.0, PLAIN)) == 2


def test_missing_file(tmp_path):
    one_line(tmp_path / "none.xyz", PLAIN, ["none.xyz", "no such file"])


def test_binary_file(tmp_path):
    path = tmp_path / "model.xyz"
    path.write_bytes(bytes(range(256)))
    one_line(path, PLAIN, ["model.xyz: configuration 0", "atom count"])


def test_unknown_config_type():
    info = DatasetInfo(n_configurations=1, config_types={"water": 1})
    with pytest.raises(DataError, match="config_type 'watr'; did you mean 'water'"):
        check_config_types(info, {"watr": 2.0, "Default": 1.0})


@pytest.fixture
def shard(tmp_path):
    """A good shard of two configurations for r_max 3."""
    options = DataOptions(pbc_handling="realspace")
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1]], info={"REF_energy": -1.0})
    atoms.arrays["REF_forces"] = np.ones((2, 3))
    write(tmp_path / "a.xyz", [atoms, atoms], format="extxyz")
    with open_shard(tmp_path / "a.h5", 3.0, options) as writer:
        for config in read_configurations(tmp_path / "a.xyz", options):
            writer.add(config, *neighborhood(config.positions, config.cell, config.pbc, 3.0))
    return tmp_path / "a.h5"


def test_truncated_hdf5(shard):
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    one_line(shard, PLAIN, ["a.h5", "truncated", "again"])


def test_hdf5_that_is_text(shard):
    shard.write_text(FRAME)
    one_line(shard, PLAIN, ["a.h5", "not a readable HDF5 file"])


def test_foreign_hdf5(shard):
    with h5py.File(shard, "w") as file:
        file["positions"] = [1.0]
    one_line(shard, PLAIN, ["a.h5", "not an fpmace data set"])


def test_wrong_schema_version(shard):
    with h5py.File(shard, "r+") as file:
        file.attrs["format_version"] = 7
    one_line(shard, PLAIN, ["a.h5", "version 7", "versions 1 and 2"])


def test_cut_arrays(shard):
    with h5py.File(shard, "r+") as file:
        file["atoms/positions"].resize(3, axis=0)
    one_line(shard, PLAIN, ["a.h5", "damaged"])


def test_wrong_r_max(shard):
    one_line(shard, PLAIN, ["a.h5", "r_max 3", "r_max is 4.5", "--r_max 4.5"], r_max=4.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (DataOptions(elements=(1,)), ["a.xyz: configuration 0", "O", "not in the model"]),
        (DataOptions(pbc_handling="slab"), ["a.xyz: configuration 0", "pbc FFF"]),
        (DataOptions(required=("total_charge",)), ["2 of 2 configurations lack total_charge"]),
        (DataOptions(multipoles_max_l=2), ["--atomic_multipoles_max_l 2"]),
        (
            DataOptions(keys=KeyMapping.from_heads({"h": {"info_keys": {"energy": "E"}}})),
            ["energy was read from key 'REF_energy'", "'E'"],
        ),
    ],
)
def test_hdf5_that_does_not_fit_the_model(shard, options, words):
    one_line(shard, options, [str(shard), *words])


def test_folder_without_shards(tmp_path):
    one_line(tmp_path, PLAIN, ["holds no .h5 shards"])


def test_folder_of_splits(tmp_path, shard):
    (tmp_path / "set" / "train").mkdir(parents=True)
    shard.rename(tmp_path / "set" / "train" / "train_0.h5")
    one_line(tmp_path / "set", PLAIN, ["no .h5 shards", "did you mean", "train"])
