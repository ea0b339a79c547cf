import gzip
import json
import os
import pickle

import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from data_cases import ROOT, water

from fpmace.data.configuration import configuration_from_atoms
from fpmace.data.dataset import open_dataset
from fpmace.data.hdf5 import Hdf5Dataset, shard_paths
from fpmace.data.hdf5_schema import PRESENT_COLUMNS, read_names
from fpmace.data.hdf5_writer import open_shard
from fpmace.data.neighborhood import neighborhood
from fpmace.data.options import DataOptions
from fpmace.errors import DataError

OPTIONS = DataOptions()


def write(path, frames, r_max=3.0):
    with open_shard(path, r_max, OPTIONS) as writer:
        for number, atoms in enumerate(frames):
            config = configuration_from_atoms(atoms, OPTIONS, source="s.xyz", index=number)
            writer.add(config, *neighborhood(config.positions, config.cell, config.pbc, r_max))
    return path


@pytest.fixture
def shard(tmp_path):
    return write(tmp_path / "train_0.h5", [water(seed=k) for k in range(5)])


def test_layout_is_flat_and_describes_itself(shard):
    with h5py.File(shard) as file:
        assert file.attrs["format"] == b"fpmace.dataset"
        assert file.attrs["format_version"] == 2
        manifest = json.loads(file.attrs["manifest"])
        assert manifest["n_configurations"] == 5
        assert manifest["keys"]["keys"]["energy"] == "REF_energy"
        assert manifest["info"]["elements"] == {"8": 5, "1": 10}
        assert manifest["sources"] == [{"path": "s.xyz"}]
        assert file["graphs/offsets"][:, 0].tolist() == [0, 3, 6, 9, 12, 15]
        assert tuple(read_names(file["graphs/present"], "columns")) == PRESENT_COLUMNS
        assert file["properties/forces"].shape == (15, 3)
        assert file["properties/forces"].attrs["unit"] == "eV/A"
        assert "stress" not in file["properties"]
        assert file["edges/index"].shape == (30, 2)


def test_a_property_that_appears_late_reads_as_absent_before(tmp_path):
    frames = [water(seed=k) for k in range(600)]
    frames[580].info["REF_stress"] = np.eye(3)
    dataset = Hdf5Dataset(write(tmp_path / "a.h5", frames), 3.0, OPTIONS)
    assert dataset[3].weights["stress"] == 0.0
    assert dataset[580].weights["stress"] == 1.0
    assert torch.equal(dataset[580].labels["stress"], torch.eye(3, dtype=torch.float64))
    assert dataset[581].labels["stress"].abs().max() == 0.0


def test_a_file_from_before_the_later_properties_reads_the_same(tmp_path):
    frames = [water(seed=k, REF_stress=np.eye(3)) for k in range(3)]
    path = write(tmp_path / "a.h5", frames)
    new = Hdf5Dataset(path, 3.0, OPTIONS)[1]
    later = ("born_charges", "pair_id")
    with h5py.File(path, "r+") as file:
        present, weights = file["graphs/present"], file["graphs/weights"]
        kept = [n for n, name in enumerate(PRESENT_COLUMNS) if name not in later]
        values = present[:][:, kept]
        del file["graphs/present"]
        file["graphs/present"] = values
        file["graphs/present"].attrs["columns"] = [PRESENT_COLUMNS[n] for n in kept]
        columns = [text.split(":") for text in read_names(weights, "columns")]
        kept = [(name, int(a), int(b)) for name, a, b in columns if name not in later]
        values = np.concatenate([weights[:, a:b] for _, a, b in kept], axis=1)
        ends = np.cumsum([b - a for _, a, b in kept])
        del file["graphs/weights"]
        file["graphs/weights"] = values
        file["graphs/weights"].attrs["columns"] = [
            f"{name}:{end - b + a}:{end}" for (name, a, b), end in zip(kept, ends, strict=True)
        ]
    dataset = Hdf5Dataset(path, 3.0, OPTIONS)
    old = dataset[1]
    assert dataset.pair_ids() == [-1, -1, -1]
    assert all(torch.equal(old.labels[name], value) for name, value in new.labels.items())
    assert all(torch.equal(old.weights[name], value) for name, value in new.weights.items())


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), open_shard(tmp_path / "a.h5", 3.0, OPTIONS):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_shards_are_read_in_numerical_order(tmp_path):
    for name in ("t_10.h5", "t_2.h5", "t_1.h5"):
        (tmp_path / name).touch()
    assert [path.name for path in shard_paths(tmp_path)] == ["t_1.h5", "t_2.h5", "t_10.h5"]


def test_opens_again_after_pickle_and_fork(shard):
    dataset = Hdf5Dataset(shard, 3.0, OPTIONS)
    energy = float(dataset[2].labels["energy"])
    copy = pickle.loads(pickle.dumps(dataset))
    assert float(copy[2].labels["energy"]) == energy
    child = os.fork()
    if child == 0:
        os._exit(0 if float(dataset[2].labels["energy"]) == energy else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert float(dataset[2].labels["energy"]) == energy


def test_memory_does_not_grow_with_the_set(tmp_path):
    """Reading 40 MB leaves the process as small as it was."""

    def resident() -> float:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    atoms = Atoms("H500", positions=np.random.default_rng(0).normal(size=(500, 3)))
    atoms.arrays["REF_forces"] = atoms.positions
    config = configuration_from_atoms(atoms, OPTIONS)
    no_edges = np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
    with open_shard(tmp_path / "big.h5", 3.0, OPTIONS) as writer:
        for _ in range(1600):
            writer.add(config, *no_edges)
    dataset = Hdf5Dataset(tmp_path / "big.h5", 3.0, OPTIONS)
    assert dataset.shards[0].path.stat().st_size > 35e6
    before = resident()
    for index in range(len(dataset)):
        _ = dataset[index]
    assert resident() - before < 12.0


@pytest.mark.parametrize("name", ["format_version", "manifest"])
def test_damaged_attributes(shard, name):
    with h5py.File(shard, "r+") as file:
        file.attrs[name] = 99 if name == "format_version" else "{}"
    with pytest.raises(DataError, match="version 99" if name == "format_version" else "damaged"):
        Hdf5Dataset(shard, 3.0, OPTIONS)


def test_a_file_of_version_1_opens_for_ever(tmp_path):
    """Written when version 1 was new: a free atom and frames 4, 60 and 100 of the source."""
    packed = ROOT / "tests" / "golden" / "data" / "dataset_v1.h5.gz"
    (tmp_path / "v1.h5").write_bytes(gzip.decompress(packed.read_bytes()))
    old = open_dataset(tmp_path / "v1.h5", 3.0)
    source = open_dataset(ROOT / "data" / "periodic_xtb.xyz", 3.0)
    by_index = {source[i].index: source[i] for i in range(len(source))}
    assert [old[i].index for i in range(len(old))] == [4, 60, 100]
    for item in (old[i] for i in range(len(old))):
        expected = by_index[item.index]
        assert torch.equal(item.edge_index, expected.edge_index)
        assert torch.equal(item.unit_shifts, expected.unit_shifts)
        for name, value in expected.labels.items():
            assert torch.equal(item.labels[name], value), name
    assert set(old.isolated_atom_energies) == {1}
