"""Model files with code in every place that conversion reads run nothing."""

from __future__ import annotations

import contextlib
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch
from crafted_models import Call, replaced, write_tree

from fpmace.cli.convert import main as convert
from fpmace.conversion.convert import convert_file
from fpmace.conversion.safe_archive import Foreign, read_foreign_archive
from fpmace.errors import FpmaceError

STORED = Path(__file__).parents[1] / "golden" / "data" / "foundation"

READ = (
    "heads",
    "r_max",
    "atomic_numbers",
    "atomic_energies",
    "embedding_specs",
    "specs",
    "type",
    "num_classes",
    "offset",
    "apply_cutoff",
    "pair_repulsion",
    "use_agnostic_product",
    "use_last_readout_only",
    "edge_irreps",
    "irreps_in",
    "irreps_out",
    "avg_num_neighbors",
    "hs",
    "correlation",
    "use_sc",
    "f",
    "cst",
    "p",
    "scale",
    "shift",
    "weight",
    "weights_max",
    "bessel_weights",
    "covalent_radii",
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "interactions",
    "products",
    "readouts",
    "joint_embedding",
    "scale_shift",
    "training",
)
"""Names of attributes and tensors that conversion looks at."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    path = tmp_path_factory.mktemp("crafted") / "whole.model"
    stored = STORED / "omol_embedding_readout.model.xz"
    path.write_bytes(lzma.decompress(stored.read_bytes()))
    root = read_foreign_archive(path)
    assert isinstance(root, Foreign)
    return root


def test_the_rewritten_file_is_the_same_model(tree: Foreign, tmp_path: Path) -> None:
    path = write_tree(replaced(tree, "", lambda _, value: value), tmp_path / "same.model")
    model = convert_file(path).model
    assert model.heads == ("head_0", "head_1")


@pytest.mark.parametrize("name", READ)
def test_code_in_one_place(name: str, tree: Foreign, tmp_path: Path) -> None:
    marker, made = tmp_path / "marker", []

    def put(place: str, value: Any) -> Any:
        if place == name:
            made.append(place)
            return Call(f"touch {marker}")
        return value

    path = write_tree(replaced(tree, "", put), tmp_path / "crafted.model")
    assert made, f"conversion reads no {name}"
    assert b"cos\nsystem\n" in path.read_bytes()
    with contextlib.suppress(FpmaceError):
        convert_file(path)
    assert not marker.exists()


def test_code_in_all_places(tree: Foreign, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    call = Call(f"touch {marker}")

    def put(_: str, value: Any) -> Any:
        leaf = isinstance(value, bool | int | float | str | torch.Tensor | type(None))
        return call if leaf else value

    path = write_tree(replaced(tree, "", put), tmp_path / "crafted.model")
    assert path.read_bytes().count(b"cos\nsystem\n") > 1000
    assert convert([str(path), str(tmp_path / "out.model")]) == 2
    assert not marker.exists()
    assert not (tmp_path / "out.model").exists()


def test_a_call_as_the_model_itself(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = write_tree(Call(f"touch {marker}"), tmp_path / "crafted.model")  # type: ignore[arg-type]
    with pytest.raises(FpmaceError, match=r"os\.system|posix\.system"):
        convert_file(path)
    assert not marker.exists()
