"""Shards that are damaged, forged or lead out of their file: one line, or the same data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from data_cases import water
from test_damage import damages

from fpmace.archive import checksum
from fpmace.data.configuration import configuration_from_atoms
from fpmace.data.hdf5 import Hdf5Dataset
from fpmace.data.hdf5_writer import open_shard
from fpmace.data.neighborhood import neighborhood
from fpmace.data.options import DataOptions
from fpmace.errors import DataError

OPTIONS = DataOptions()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    with open_shard(tmp_path / "train_0.h5", 3.0, OPTIONS) as writer:
        for number in range(5):
            config = configuration_from_atoms(
                water(seed=number), OPTIONS, source="s.xyz", index=number
            )
            writer.add(config, *neighborhood(config.positions, config.cell, config.pbc, 3.0))
    return tmp_path / "train_0.h5"


def read(path: Path) -> list[Any]:
    dataset = Hdf5Dataset(path, 3.0, OPTIONS)
    try:
        return [dataset[index] for index in range(len(dataset))]
    finally:
        for item in dataset.shards:
            item.close()


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    for part in parts:
        assert part in text, text


def test_bit_rot_is_noticed_or_harmless(shard):
    whole, intended = shard.read_bytes(), read(shard)
    noticed = 0
    for changed in damages(whole, 60):
        shard.write_bytes(changed)
        try:
            found = read(shard)
        except DataError as error:
            noticed += "\n" not in str(error)
            continue
        for item, expected in zip(found, intended, strict=True):
            assert torch.equal(item.positions, expected.positions)
            assert torch.equal(item.edge_index, expected.edge_index)
            assert all(
                torch.equal(item.labels[name], expected.labels[name]) for name in item.labels
            )
    assert noticed > 0


MANIFEST: dict[str, list[Any]] = {
    "r_max": ["x", None, [], float("nan")],
    "n_configurations": [-1, 4, 6, 10**15, "5", 2.5],
    "n_atoms": [0, 14, 10**15],
    "n_edges": [-1, 29],
    "n_multipoles": [0, -3, 9, "4"],
    "keys": [[], None, "x"],
    "config_types": ["x", [1], []],
    "sources": [[], {}, [1], [{"p": 1}]],
    "isolated": [[99], [-1], "x", [[0]]],
    "isolated_atom_energies": [[1], {"x": 1.0}, {"1": "x"}],
    "info": [[], {"n_configurations": "x"}, {"elements": 3}, {"nothing": 1}],
    "split_by": [3],
    "config_type_weights": [[1], {"a": "b"}],
    "nothing": [1],
}
FORGED = [(name, value) for name, values in MANIFEST.items() for value in values]


@pytest.mark.parametrize(("name", "value"), FORGED)
def test_manifest_of_wrong_type_or_size(shard, name, value):
    with h5py.File(shard, "r+") as file:
        manifest = json.loads(file.attrs["manifest"])
        manifest[name] = value
        file.attrs["manifest"] = json.dumps(manifest)
    refused(shard, "does not match its checksum")
    with h5py.File(shard, "r+") as file:
        file.attrs["manifest_sha256"] = checksum(file.attrs["manifest"])
    refused(shard)


@pytest.mark.parametrize("text", ["", "[]", "1", "{", "[" * 100000, "null", b"\xff", 3, [1.0]])
def test_manifest_that_is_no_mapping(shard, text):
    with h5py.File(shard, "r+") as file:
        file.attrs["manifest"] = text
        del file.attrs["manifest_sha256"]
    refused(shard)


@pytest.mark.parametrize("version", ["1", 0, 3, -1, 1.5, [1], "x"])
def test_format_version_of_wrong_type(shard, version):
    with h5py.File(shard, "r+") as file:
        file.attrs["format_version"] = version
    refused(shard)


ARRAYS = [
    "graphs/offsets",
    "graphs/cell",
    "graphs/present",
    "graphs/weights",
    "graphs/ids",
    "atoms/positions",
    "atoms/numbers",
    "edges/index",
    "edges/shifts",
    "properties/forces",
    "properties/energy",
]


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "change",
    ["missing", "shape", "short", "kind", "group", "link", "external", "virtual", "hollow"],
)
def test_arrays_are_those_of_the_format(shard, name, change, tmp_path):
    with h5py.File(shard, "r+") as file:
        values, attributes = file[name][:], dict(file[name].attrs)
        del file[name]
        if change == "shape":
            file[name] = values[..., None]
        elif change == "short":
            file[name] = values[:-1]
        elif change == "kind":
            file[name] = values.astype("S8")
        elif change == "group":
            file.create_group(name)
        elif change == "link":
            with h5py.File(tmp_path / "other.h5", "w") as other:
                other["data"] = values
            file[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), "data")
        elif change == "external":
            (tmp_path / "raw").write_bytes(values.tobytes())
            file.create_dataset(
                name, values.shape, values.dtype, external=[(tmp_path / "raw", 0, values.nbytes)]
            )
        elif change == "virtual":
            with h5py.File(tmp_path / "other.h5", "w") as other:
                other["data"] = values
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "data", values.shape)
            file.create_virtual_dataset(name, layout)
        elif change == "hollow":
            file.create_dataset(name, values.shape, values.dtype, chunks=True)
        if change not in ("missing", "link"):
            file[name].attrs.update(attributes)
    if name.startswith("properties/") and change in ("missing", "hollow"):
        return  # A property that is present nowhere has no array; zeros are values.
    refused(shard)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("atoms/positions", (0, 1), np.nan),
        ("atoms/positions", (0, 1), 1e30),
        ("atoms/numbers", (0,), 0),
        ("atoms/numbers", (0,), 200),
        ("edges/index", (0, 0), 3),
        ("edges/index", (0, 1), -1),
        ("graphs/cell", (0, 1, 1), np.inf),
        ("graphs/ids", (0, 0), 7),
        ("graphs/ids", (0, 1), 9),
        ("graphs/weights", (0, 0), np.nan),
        ("graphs/offsets", (1, 0), 99),
        ("graphs/offsets", (1, 1), -4),
        ("graphs/offsets", (0, 0), 1),
        ("properties/energy", (0,), np.nan),
        ("properties/forces", (0, 2), 1e300),
    ],
)
def test_contents_are_checked_when_read(shard, name, place, value):
    with h5py.File(shard, "r+") as file:
        file[name][place] = value
    refused(shard, "is damaged")


def test_compressed_arrays_are_refused(shard):
    with h5py.File(shard, "r+") as file:
        values = file["atoms/positions"][:]
        del file["atoms/positions"]
        file.create_dataset("atoms/positions", data=values, compression="gzip")
    refused(shard, "compressed")


def test_arrays_carry_checksums(shard):
    with h5py.File(shard) as file:
        assert all(file[name].fletcher32 for name in ARRAYS)
        place = file["atoms/positions"].id.get_chunk_info(0).byte_offset
    content = bytearray(shard.read_bytes())
    content[place + 5] ^= 1
    shard.write_bytes(content)
    refused(shard, "is damaged")
