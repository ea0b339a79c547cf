import pytest
from data_cases import ROOT, water, write_xyz
from hypothesis import given
from hypothesis import strategies as st

from fpmace.data.dataset import open_dataset
from fpmace.data.extxyz import read_frame_info, scan_frames
from fpmace.data.options import DataOptions
from fpmace.data.split import split_dataset, split_indices
from fpmace.errors import ConfigError, DataError

GROUPS = [f"{k // 5}" for k in range(200)]
TYPES = ["ion" if (k // 5) % 4 == 0 else "water" for k in range(200)]
SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}


@given(seed=st.integers(0, 10_000))
def test_groups_stay_together_and_types_are_spread(seed):
    parts = split_indices(GROUPS, TYPES, SHARES, seed=seed)
    assert sorted(i for part in parts.values() for i in part) == list(range(200))
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 140,
        "valid": 20,
        "test": 40,
    }
    groups = {name: {GROUPS[i] for i in part} for name, part in parts.items()}
    assert not groups["train"] & groups["valid"]
    assert not groups["test"] & (groups["train"] | groups["valid"])
    for name, share in SHARES.items():
        ions = sum(TYPES[i] == "ion" for i in parts[name])
        assert abs(ions - share * 50) <= 5


def test_seed_decides():
    assert split_indices(GROUPS, TYPES, SHARES, 1) == split_indices(GROUPS, TYPES, SHARES, 1)
    assert split_indices(GROUPS, TYPES, SHARES, 1) != split_indices(GROUPS, TYPES, SHARES, 2)


def test_free_atoms_train_and_loners_are_groups_of_their_own():
    parts = split_indices(
        ["", "", "", ""], ["IsolatedAtom", "a", "a", "a"], {"t": 0.5, "v": 0.5}, 0
    )
    assert 0 in parts["t"]
    assert len(parts["v"]) in (1, 2)


def test_shares_must_sum_to_one():
    with pytest.raises(ConfigError, match="sum to 1"):
        split_indices(GROUPS, TYPES, {"train": 0.7}, 0)


def test_dataset_is_split_by_key(tmp_path):
    path = write_xyz(tmp_path / "a.xyz", [water(seed=k, traj=k // 4) for k in range(40)])
    dataset = open_dataset(path, 3.0, DataOptions(split_by="traj"))
    train, valid = split_dataset(dataset, 0.2, seed=1)
    assert len(train) + len(valid) == 40
    assert len(valid) == 8
    assert not set(train.groups()) & set(valid.groups())
    with pytest.raises(ConfigError, match="valid_fraction"):
        split_dataset(dataset, 1.5, seed=1)
    with pytest.raises(DataError, match="valid part empty"):
        split_dataset(dataset.subset([0, 1, 2]), 0.1, seed=1)


def test_dataset_without_the_key(tmp_path):
    path = write_xyz(tmp_path / "a.xyz", [water(seed=k) for k in range(4)])
    dataset = open_dataset(path, 3.0, DataOptions(split_by="trajectory"))
    with pytest.raises(DataError, match="no configuration has the key 'trajectory'"):
        split_dataset(dataset, 0.5, seed=1)


@pytest.mark.parametrize("folder", ["water_ions", "quickstart"])
def test_shipped_splits_share_no_trajectory(folder):
    seen: dict[str, str] = {}
    elements = {}
    for name in ("train", "valid", "test"):
        path = ROOT / "data" / folder / f"{name}.xyz"
        infos = list(read_frame_info(path, scan_frames(path)))
        trajectories = {str(info["traj"]) for info in infos if "traj" in info}
        assert not trajectories & set(seen)
        seen.update(dict.fromkeys(trajectories, name))
        elements[name] = {info["config_type"].split("_")[0] for info in infos} - {"IsolatedAtom"}
        assert any(abs(float(value)) > 0 for i in infos for value in i["external_field"])
    assert elements["train"] == elements["valid"] == elements["test"]
