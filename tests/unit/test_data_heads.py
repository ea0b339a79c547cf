"""Heads in the data: which configuration is whose, with which keys, weights and free atoms."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from data_cases import assert_same_batches, free_atom, water, write_xyz

from fpmace.cli.preprocess import main as preprocess
from fpmace.config.load import ConfigProblems, resolve
from fpmace.data.dataset import make_loader, open_dataset
from fpmace.data.heads import Head, parse_heads
from fpmace.data.joined import JoinedDataset
from fpmace.data.options import DataOptions
from fpmace.data.statistics import DatasetStatistics, statistics_by_head
from fpmace.errors import ConfigError, DataError
from fpmace.training.data import open_datasets, training_statistics

R_MAX = 3.0
HEADS: dict[str, Any] = {"xtb": {}, "dft": {"energy_key": "E", "weight": 3.0}}


def frames(head: str, n: int, shift: float) -> list[Atoms]:
    """Free atoms and waters of a head; the energies of ``dft`` stand under E."""
    found = [free_atom("H", -13.0 + shift), free_atom("O", -400.0 + shift)]
    found += [water(seed=seed, pair_id=seed) for seed in range(n)]
    for atoms in found:
        energy = float(atoms.info.pop("REF_energy")) + shift
        atoms.info.update({"head": head, "E" if head == "dft" else "REF_energy": energy})
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    xtb, dft = frames("xtb", 4, 0.0), frames("dft", 3, 5.0)
    write_xyz(tmp_path / "xtb.xyz", xtb)
    write_xyz(tmp_path / "dft.xyz", dft)
    write_xyz(tmp_path / "mixed.xyz", [dft[0], *xtb[:3], *dft[1:], *xtb[3:]])
    return tmp_path


def options() -> DataOptions:
    return DataOptions(heads=parse_heads(HEADS))


def test_heads_of_a_mixed_file_have_their_own_keys_weights_and_free_atoms(folder: Path) -> None:
    data = open_dataset(folder / "mixed.xyz", R_MAX, options())
    assert isinstance(data, JoinedDataset)
    assert data.heads() == ["xtb"] * 4 + ["dft"] * 3
    assert data.info.heads == {"xtb": 4, "dft": 3}
    assert data.parts["xtb"].isolated_atom_energies == {1: -13.0, 8: -400.0}
    assert data.parts["dft"].isolated_atom_energies == {1: -3.0, 8: -390.0}
    (batch,) = make_loader(data, 7)
    assert batch.head.tolist() == [0] * 4 + [1] * 3
    assert batch.weight.tolist() == [1.0] * 4 + [3.0] * 3
    expected = [-14.0, -13, -12, -11, -9, -8, -7]
    assert batch.labels["energy"].tolist() == pytest.approx(expected)
    assert bool((batch.weights["energy"] == 1).all())
    ids = batch.labels["pair_id"]
    assert len(set(ids.tolist())) == 7, "the same number in two heads is no pair"
    assert data.pair_ids() == ids.tolist()
    keep = batch.head == 1
    assert batch.select(keep).head.tolist() == [1, 1, 1]


def test_files_of_heads_give_what_a_mixed_file_gives(folder: Path) -> None:
    given = {name: {**HEADS[name], "train_file": str(folder / f"{name}.xyz")} for name in HEADS}
    common = {"model": "MACE", "r_max": R_MAX, "loss": {"forces": 1.0}, "valid_fraction": 0.4}
    own = _draft({**common, "heads": given})
    mixed = _draft({**common, "heads": HEADS, "train_file": str(folder / "mixed.xyz")})
    for name in ("train", "valid"):
        one, other = (getattr(open_datasets(config), name) for config in (own, mixed))
        batches = [list(make_loader(data, 3)) for data in (one, other)]
        without = [[_anonymous(batch) for batch in item] for item in batches]
        assert_same_batches(*without)
        assert set(one.heads()) == {"xtb", "dft"}


def _anonymous(batch: Any) -> Any:
    """Without the places in the files."""
    return dataclasses.replace(batch, index=torch.zeros_like(batch.index))


def _draft(values: dict[str, Any]) -> Any:
    """A configuration whose model is not asked whether it has heads."""
    single = {**values, "heads": {}, "train_file": "x"}
    config = resolve(single).config
    return dataclasses.replace(
        config, heads=values["heads"], train_file=values.get("train_file"), valid_fraction=0.4
    )


def test_shards_know_their_head(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "heads.yaml"
    config.write_text(f"heads: {HEADS}\nr_max: {R_MAX}\nE0s: IsolatedAtom\n")
    output = tmp_path / "data"
    common = ["--config", str(config), "--output", str(output)]
    assert preprocess([*common, "--train_file", str(folder / "mixed.xyz")]) == 0
    assert {path.name for path in (output / "train").iterdir()} == {
        "train_xtb_0.h5",
        "train_dft_0.h5",
    }
    xyz = open_dataset(folder / "mixed.xyz", R_MAX, options())
    shards = open_dataset(output / "train", R_MAX, options())
    assert_same_batches(list(make_loader(xyz, 2)), list(make_loader(shards, 2)))
    some = [1, 5, 2]
    assert shards.subset(some).heads() == ["xtb", "xtb", "dft"]
    statistics = DatasetStatistics.load(output / "statistics.json")
    assert statistics.heads is not None
    assert statistics.is_of(xyz)
    assert not statistics.is_of(xyz.subset(some))
    assert statistics.heads["dft"].atomic_energies == {1: -3.0, 8: -390.0}
    with pytest.raises(DataError, match=r"shards of the heads .*xtb.*; give heads"):
        open_dataset(output / "train", R_MAX, DataOptions())
    other = DataOptions(heads=(Head("xtb"), Head("pbe")))
    with pytest.raises(DataError, match=r"for the head 'dft', but heads has xtb, pbe"):
        open_dataset(output / "train", R_MAX, other)
    single = DataOptions(heads=(Head("a"), Head("b")), head="b")
    batch = next(
        iter(make_loader(open_dataset(output / "train" / "train_xtb_0.h5", 3.0, single), 9))
    )
    assert batch.head.tolist() == [1] * 4


def test_statistics_are_those_of_each_head(folder: Path) -> None:
    data = open_dataset(folder / "mixed.xyz", R_MAX, options())
    assert isinstance(data, JoinedDataset)
    found = statistics_by_head(data, {"xtb": "average", "dft": {1: -1.0, 8: -2.0, 6: 0.0}})
    assert found.heads is not None
    energies = np.array([-9.0, -8.0, -7.0])
    assert found.heads["dft"].mean == pytest.approx(((energies + 4.0) / 3).mean())
    assert found.heads["xtb"].mean == pytest.approx(0.0)
    assert found.heads["dft"].atomic_energies == {1: -1.0, 8: -2.0}
    assert DatasetStatistics.from_json(found.to_json()) == found


def test_an_element_without_data_in_a_head(folder: Path, caplog: Any) -> None:
    sulphur = water(seed=9, head="xtb")
    sulphur.numbers[0] = 16
    write_xyz(folder / "more.xyz", [*frames("xtb", 2, 0.0), *frames("dft", 2, 0.0), sulphur])
    data = open_dataset(folder / "more.xyz", R_MAX, options())
    assert isinstance(data, JoinedDataset)
    found = statistics_by_head(data, {"xtb": "average", "dft": "IsolatedAtom"})
    assert found.heads is not None
    assert found.heads["dft"].atomic_energies[16] == 0.0
    assert "head dft: no atomic energy for S" in caplog.text


def test_energies_asked_for_by_a_head(folder: Path) -> None:
    heads = {**HEADS, "dft": {**HEADS["dft"], "E0s": {1: -1.0, 8: -2.0}}}
    config = _draft(
        {"model": "MACE", "heads": heads, "train_file": str(folder / "mixed.xyz"), "r_max": R_MAX}
    )
    config = dataclasses.replace(config, E0s="IsolatedAtom")
    statistics = training_statistics(config, {}, open_datasets(config).train)
    assert statistics.heads is not None
    assert statistics.heads["xtb"].atomic_energies == {1: -13.0, 8: -400.0}
    assert statistics.heads["dft"].atomic_energies == {1: -1.0, 8: -2.0}


def test_configurations_of_no_or_another_head_are_named(folder: Path) -> None:
    write_xyz(folder / "lost.xyz", [water(head="xtb"), water()])
    with pytest.raises(DataError, match=r"configuration 1: names no head; .*heads: xtb, dft"):
        open_dataset(folder / "lost.xyz", R_MAX, options())
    write_xyz(folder / "other.xyz", [water(head="xtc")])
    with pytest.raises(DataError, match=r"head is 'xtc'; did you mean 'xtb'\?"):
        open_dataset(folder / "other.xyz", R_MAX, options())
    config = _draft(
        {"model": "MACE", "heads": HEADS, "train_file": str(folder / "xtb.xyz"), "r_max": R_MAX}
    )
    with pytest.raises(DataError, match="no configuration belongs to the head 'dft'"):
        open_datasets(config)


def test_files_of_the_only_head_are_those_of_the_run(folder: Path) -> None:
    files = {"train_file": "a.xyz", "valid_file": "b.xyz", "E0s": "IsolatedAtom"}
    config = resolve({"heads": {"dft": {**files, "energy_key": "E"}}}).config
    assert (config.train_file, config.valid_file, config.E0s) == tuple(files.values())
    with pytest.raises(ConfigProblems, match=r"train_file: contradicts heads\.dft\.train_file"):
        resolve({"heads": {"dft": files}, "train_file": "c.xyz"})


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({"a": {"trainfile": "x"}}, ["heads.a.trainfile", "'train_file'"]),
        ({"a": {"train_file": 3}}, ["heads.a.train_file", "3"]),
        ({"a": {"weight": -1}}, ["heads.a.weight", "-1"]),
        ({"a": {"E0s": 3}}, ["heads.a.E0s", "3"]),
        ({"a/b": {}}, ["heads", "'a/b'"]),
        ({"a": {"info_keys": {"forces": "F"}}}, ["per atom", "arrays_keys"]),
    ],
)
def test_wrong_heads_are_one_line(heads: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_heads(heads)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
