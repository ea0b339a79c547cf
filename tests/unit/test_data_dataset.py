import itertools
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_cases import QUICKSTART, assert_same_batches, free_atom, water, write_xyz
from hypothesis import given
from hypothesis import strategies as st

from fpmace.data.dataset import EpochSampler, make_loader, open_dataset
from fpmace.data.extxyz import read_configurations, scan_frames
from fpmace.data.hdf5_writer import open_shard
from fpmace.data.neighborhood import neighborhood
from fpmace.data.options import DataOptions
from fpmace.data.packing import BatchSampler
from fpmace.data.summary import data_summary
from fpmace.errors import ConfigError, DataError

OPTIONS = DataOptions(split_by="traj", config_type_weights={"Default": 1.0})
R_MAX = 4.0


def write_shards(source, folder, n_shards, options=OPTIONS, r_max=R_MAX):
    """Write consecutive configurations to shards."""
    configs = list(read_configurations(source, options))
    size = -(-len(configs) // n_shards)
    for number in range(n_shards):
        with open_shard(folder / f"part_{number}.h5", r_max, options) as writer:
            for config in configs[number * size : (number + 1) * size]:
                edges = neighborhood(config.positions, config.cell, config.pbc, r_max)
                writer.add(config, *edges)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Forty configurations with free atoms in the middle and properties that come and go."""
    random = np.random.default_rng(0)
    frames = []
    for k in range(40):
        atoms = water(seed=k, traj=k // 4, config_type="ab"[k % 2] * 3)
        if k % 3 == 0:
            atoms.info["REF_stress"] = random.normal(size=(3, 3))
            atoms.arrays["REF_charges"] = random.normal(size=3)
        if k % 5 == 0:
            del atoms.info["REF_energy"]
        if k in (0, 1, 20, 33):
            atoms.info["pair_id"] = k // 20
            atoms.arrays["REF_born_charges"] = random.normal(size=(3, 9))
        if k > 30:
            atoms.arrays["cluster_id"] = np.array([0, 0, 1])
            atoms.set_cell(np.eye(3) * 6.0)
            atoms.pbc = [True, True, k % 2 == 0]
        frames.append(atoms)
    frames[7:7] = [free_atom("H", -1.0), free_atom("O", -2.0)]
    return write_xyz(tmp_path_factory.mktemp("data") / "set.xyz", frames)


@pytest.fixture(scope="module")
def forms(source, tmp_path_factory):
    """The same set as XYZ, as one file, and as twelve shards."""
    folder = tmp_path_factory.mktemp("shards")
    one = write_shards(source, folder / "one", 1) / "part_0.h5"
    many = write_shards(source, folder / "many", 12)
    return {
        "xyz": open_dataset(source, R_MAX, OPTIONS),
        "file": open_dataset(one, R_MAX, OPTIONS),
        "shards": open_dataset(many, R_MAX, OPTIONS),
    }


def batches(dataset, **options):
    return list(make_loader(dataset, 7, **options))


@pytest.mark.parametrize("form", ["file", "shards"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_three_forms_give_the_same_batches(forms, form, num_workers):
    expected = batches(forms["xyz"], shuffle=True, seed=5)
    found = batches(forms[form], shuffle=True, seed=5, num_workers=num_workers)
    assert_same_batches(expected, found)
    assert "cluster_id" in found[0].labels


@pytest.mark.parametrize("form", ["file", "shards"])
def test_three_forms_agree_on_everything_else(forms, form):
    xyz, other = forms["xyz"], forms[form]
    assert len(other) == len(xyz) == 40
    assert other.info == xyz.info
    assert other.isolated_atom_energies == xyz.isolated_atom_energies == {1: -1.0, 8: -2.0}
    assert other.groups() == xyz.groups()
    assert other.config_types() == xyz.config_types()
    pairs = {0: 0, 1: 0, 20: 1, 33: 1}
    assert other.pair_ids() == xyz.pair_ids() == [pairs.get(k, -1) for k in range(40)]


@pytest.mark.parametrize("form", ["xyz", "file", "shards"])
def test_subset(forms, form):
    part = forms[form].subset([30, 3, 8]).subset([2, 0])
    assert [part[i].index for i in range(2)] == [forms["xyz"][i].index for i in (8, 30)]
    assert part.info.n_configurations == len(part) == 2
    assert part.isolated_atom_energies
    with pytest.raises(IndexError):
        part[2]


def test_index_is_the_place_in_the_file(forms):
    assert [forms["shards"][i].index for i in (0, 6, 7, 39)] == [0, 6, 9, 41]


@pytest.mark.parametrize("form", ["xyz", "shards"])
def test_free_atoms_can_be_members(forms, form):
    options = replace(OPTIONS, keep_isolated_atoms=True)
    dataset = open_dataset(forms[form].path, R_MAX, options)
    assert len(dataset) == 42
    assert dataset[7].n_atoms == 1
    assert dataset.info.config_types["IsolatedAtom"] == 2


def test_weights_by_type_are_applied_at_load(forms):
    options = replace(OPTIONS, config_type_weights={"aaa": 4.0})
    for form in ("xyz", "shards"):
        dataset = open_dataset(forms[form].path, R_MAX, options)
        assert [float(dataset[i].weight) for i in range(3)] == [4.0, 1.0, 4.0]


def test_weights_by_type_are_remembered(source, tmp_path):
    options = replace(OPTIONS, config_type_weights={"bbb": 0.5})
    folder = write_shards(source, tmp_path, 1, options)
    dataset = open_dataset(folder, R_MAX, DataOptions())
    assert [float(dataset[i].weight) for i in range(3)] == [1.0, 0.5, 1.0]


def test_lower_multipole_order_is_cut_at_load(forms):
    dataset = open_dataset(forms["file"].path, R_MAX, DataOptions(multipoles_max_l=0))
    assert dataset[0].labels["atomic_multipoles"].shape == (3, 1)


def test_order_is_fixed_by_seed_and_epoch(forms):
    def order(seed, epoch):
        loader = make_loader(forms["xyz"], 40, shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        return next(iter(loader)).index.tolist()

    before = torch.get_rng_state()
    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(1, 4)
    assert order(1, 3) != order(2, 3)
    assert sorted(order(1, 3)) == sorted(forms["xyz"][i].index for i in range(40))
    assert torch.equal(before, torch.get_rng_state())


def test_order_without_shuffling_and_drop_last(forms):
    loader = make_loader(forms["xyz"], 12, drop_last=True)
    assert len(loader) == len(list(loader)) == 3
    assert next(iter(loader)).index.tolist()[:8] == [0, 1, 2, 3, 4, 5, 6, 9]


@pytest.mark.parametrize(("size", "workers"), [(0, 0), (1, -1)])
def test_loader_refuses_nonsense(forms, size, workers):
    with pytest.raises(ConfigError):
        make_loader(forms["xyz"], size, num_workers=workers)


def test_missing_charge_warns(tmp_path, caplog):
    atoms = water()
    del atoms.info["total_charge"]
    path = write_xyz(tmp_path / "neutral.xyz", [atoms, water()])
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(path, R_MAX)
    assert "1 of 2 configurations have no total_charge" in caplog.text
    assert dataset[0].total_charge == 0.0
    with pytest.raises(DataError, match="configuration 0: lacks total_charge"):
        open_dataset(path, R_MAX, DataOptions(required=("total_charge",)))


def test_shipped_data_opens():
    dataset = open_dataset(QUICKSTART / "train.xyz", 5.0, DataOptions(pbc_handling="auto"))
    assert set(dataset.isolated_atom_energies) == set(dataset.info.atomic_numbers)
    assert dataset.info.properties["fermi_level"] == len(dataset)
    assert len(scan_frames(QUICKSTART / "train.xyz")) == len(dataset) + 4


def test_summary_names_splits_properties_and_keys(forms):
    text = data_summary({"train": forms["xyz"], "test": forms["shards"].subset([0, 1])})
    lines = {row[0]: row[1:] for row in _rows(text)}
    assert lines["configurations"] == ["40", "2"]
    assert lines["free atoms (energies only)"] == ["2", "2"]
    assert lines["energy"] == ["REF_energy", "eV", "32", "1"]
    assert lines["periodicity TTF"] == ["5", "0"]
    assert lines["aaa"] == ["20", "1"]
    assert "charges" in lines
    assert "polarizability" not in lines


def _rows(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_line_ends_and_blank_tail_do_not_matter(tmp_path):
    path = write_xyz(tmp_path / "unix.xyz", [water(seed=k) for k in range(2)])
    other = tmp_path / "dos.xyz"
    other.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n \r\n")
    assert_same_batches(batches(open_dataset(path, 3.0)), batches(open_dataset(other, 3.0)))


def test_worker_processes_serve_epoch_after_epoch(forms):
    loader = make_loader(forms["shards"], 7, shuffle=True, seed=2, num_workers=1)
    for epoch in range(2):
        loader.set_epoch(epoch)
        alone = make_loader(forms["xyz"], 7, shuffle=True, seed=2)
        alone.set_epoch(epoch)
        assert_same_batches(list(alone), list(loader))


@given(st.data(), st.integers(0, 40), st.integers(1, 6), st.booleans(), st.integers(0, 3))
def test_processes_share_the_batches_without_duplicates(data, n_items, world_size, shuffle, epoch):
    costs = data.draw(st.none() | st.lists(st.integers(1, 9), min_size=n_items, max_size=n_items))

    def sampler(rank=0, world_size=1):
        order = EpochSampler(n_items, shuffle=shuffle, seed=5)
        found = BatchSampler(order, 7, costs=costs, rank=rank, world_size=world_size)
        found.set_epoch(epoch)
        return found

    parts = [sampler(rank, world_size) for rank in range(world_size)]
    batches = [part.batches() for part in parts]
    assert sorted(i for part in batches for batch in part for i in batch) == list(range(n_items))
    assert {part.n_rounds() for part in parts} == {max(map(len, batches))}
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    rounds = itertools.zip_longest(*batches)
    assert [one for several in rounds for one in several if one] == sampler().batches()
    for batch in sampler().batches():
        total = sum(costs[i] if costs else 1 for i in batch)
        assert total <= 7 or len(batch) == 1


def test_rank_beyond_the_processes_is_refused():
    with pytest.raises(ConfigError, match="rank: must be from 0 to 1, got 2"):
        BatchSampler(EpochSampler(3, shuffle=False), 1, rank=2, world_size=2)
