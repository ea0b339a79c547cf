"""Statistics beside preprocessed data serve only the data and options that they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_cases import free_atom, water, write_xyz

from fpmace.cli.preprocess import main
from fpmace.config.load import resolve
from fpmace.data.statistics import DatasetStatistics, compute_statistics
from fpmace.errors import DataError
from fpmace.training.data import open_datasets, training_statistics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of waters and free atoms, and their statistics."""
    place = tmp_path_factory.mktemp("statistics")
    frames = [water(seed=seed) for seed in range(6)]
    atoms = [free_atom("H", -13.0), free_atom("O", -400.0)]
    train = write_xyz(place / "train.xyz", atoms + frames)
    options = ["--train_file", train, "--valid_file", train, "--r_max", 3]
    options += ["--shards", 2, "--E0s", "IsolatedAtom"]
    assert main([str(item) for item in (*options, "--output", place / "set")]) == 0
    return place / "set"


def found(folder: Path, **options: Any) -> tuple[DatasetStatistics, DatasetStatistics]:
    """What a training takes, and what its data gives."""
    values = {"train_file": folder / "train", "valid_file": folder / "valid", "r_max": 3.0}
    values |= {"atom_density_scaling": "average", **options}
    resolved = resolve({n: str(v) if isinstance(v, Path) else v for n, v in values.items()})
    train = open_datasets(resolved.config).train
    taken = training_statistics(resolved.config, resolved.origins, train)
    return taken, compute_statistics(train, taken.atomic_energies)


def test_statistics_of_the_same_data_are_taken(folder: Path) -> None:
    taken, expected = found(folder)
    assert taken == expected == DatasetStatistics.load(folder / "statistics.json")


@pytest.mark.parametrize(
    "options",
    [{"atomic_multipoles_max_l": 0}, {"keep_isolated_atoms": True}, {"train_file": "shard"}],
    ids=["degree", "free atoms", "shard"],
)
def test_other_data_or_degrees_are_gathered_anew(folder: Path, options: dict[str, Any]) -> None:
    if options.get("train_file") == "shard":
        options = {"train_file": folder / "train" / "train_0.h5"}
    taken, expected = found(folder, **options)
    assert taken == expected
    stored = DatasetStatistics.load(folder / "statistics.json")
    changed = ("atom_density_scaling", "avg_num_neighbors", "rms")
    assert any(getattr(taken, name) != getattr(stored, name) for name in changed)


def test_a_file_that_was_named_is_refused_for_other_data(folder: Path) -> None:
    named = {"statistics_file": folder / "statistics.json"}
    with pytest.raises(DataError, match=r"belongs to 6 configurations.*8 configurations.*leave"):
        found(folder, **named, keep_isolated_atoms=True)
