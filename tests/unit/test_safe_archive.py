"""Foreign archives: what is read from them, and that nothing in them runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from fpmace.conversion.module_tree import plain
from fpmace.conversion.safe_archive import (
    Foreign,
    class_name,
    class_path,
    read_foreign_archive,
)
from fpmace.errors import ModelFileError


class Call:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def saved(value: Any, folder: Path) -> Path:
    path = folder / "file.model"
    torch.save(value, path)
    return path


def archive(path: Path, records: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in records.items():
            file.writestr(name, content)
    return path


def test_a_call_in_the_file_is_recorded_and_not_made(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = saved({"a": Call(os.system, f"touch {marker}"), "b": Call(eval, "1 / 0")}, tmp_path)
    content = read_foreign_archive(path)
    assert not marker.exists()
    assert class_name(content["a"]) == "system"
    assert content["a"].args == (f"touch {marker}",)
    assert class_path(content["b"]) in ("builtins.eval", "__builtin__.eval")


def test_the_same_file_would_run_if_opened_without_care(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = saved(Call(os.system, f"touch {marker}"), tmp_path)
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "function",
    [getattr, setattr, exec, compile, __import__, open, torch.load, pickle.loads, os.remove],
)
def test_no_function_is_taken_in_earnest(function: Any, tmp_path: Path) -> None:
    content = read_foreign_archive(saved(Call(function, "x", "y"), tmp_path))
    assert isinstance(content, Foreign)
    assert content.args == ("x", "y")


def test_known_functions_cannot_be_changed_by_the_file(tmp_path: Path) -> None:
    """BUILD on a function that the reader calls itself is refused."""
    pickled = io.BytesIO()
    pickled.write(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n")
    pickled.write(pickle.dumps({"function": 1}, protocol=2)[2:-1] + b"b.")
    path = archive(tmp_path / "x.model", {"x/data.pkl": pickled.getvalue()})
    with pytest.raises(ModelFileError, match="the state of a function cannot be set"):
        read_foreign_archive(path)


def test_tensors_views_and_containers_are_read(tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.float64)
    value = {
        "view": base.view(3, 4)[:, 1],
        "same": base,
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.float32)),
        "flag": torch.tensor(True),
        "empty": torch.zeros(0, 3, dtype=torch.float64),
        "set": {1, 2},
        "dict": OrderedDict(a=1),
        "bytes": b"\x00\xff",
        "size": torch.Size([2, 3]),
        "dtype": torch.float32,
    }
    content = read_foreign_archive(saved(value, tmp_path))
    assert torch.equal(content["view"], torch.tensor([1.0, 5.0, 9.0], dtype=torch.float64))
    assert torch.equal(content["same"], base)
    assert content["parameter"].dtype == torch.float32
    assert not isinstance(content["parameter"], torch.nn.Parameter)
    assert bool(content["flag"]) is True
    assert content["empty"].shape == (0, 3)
    assert content["set"] == {1, 2}
    assert content["dict"] == {"a": 1}
    assert content["bytes"] == b"\x00\xff"
    assert content["size"] == (2, 3)
    assert content["dtype"] is torch.float32


def test_modules_become_stand_ins_with_their_attributes(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 3, dtype=torch.float64)
    content = read_foreign_archive(saved(module, tmp_path))
    assert class_path(content) == "torch.nn.modules.linear.Linear"
    assert content.attributes["in_features"] == 2
    assert torch.equal(content.attributes["_parameters"]["weight"], module.weight.detach())


def test_numbers_of_numpy_are_plain(tmp_path: Path) -> None:
    import numpy as np

    content = read_foreign_archive(saved([np.float64(2.5), np.int64(3)], tmp_path))
    assert plain(content) == [2.5, 3]


def test_a_float32_number_is_the_decimal_that_was_meant() -> None:
    assert plain(torch.tensor(4.3, dtype=torch.float32)) == 4.3


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        read_foreign_archive(tmp_path / "none.model")
    text = tmp_path / "text.model"
    text.write_text("not a model")
    with pytest.raises(ModelFileError, match=r"not a zip archive of torch\.save"):
        read_foreign_archive(text)
    old = tmp_path / "old.model"
    torch.save([1], old, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelFileError, match=r"before 1\.6"):
        read_foreign_archive(old)
    with pytest.raises(ModelFileError, match=r"no data\.pkl"):
        read_foreign_archive(archive(tmp_path / "a.zip", {"x/y": b""}))
    with pytest.raises(ModelFileError, match="TorchScript"):
        read_foreign_archive(
            archive(tmp_path / "b.zip", {"x/data.pkl": b"", "x/code/a.py": b"", "x/version": b""})
        )


def test_damaged_records(tmp_path: Path) -> None:
    path = saved(torch.ones(5, dtype=torch.float64), tmp_path)
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    data = next(name for name in records if name.endswith("data/0"))
    short = archive(tmp_path / "short.model", {**records, data: b"12345678"})
    with pytest.raises(ModelFileError, match="has 8 bytes, not 5 values"):
        read_foreign_archive(short)
    lost = archive(
        tmp_path / "lost.model", {key: value for key, value in records.items() if key != data}
    )
    with pytest.raises(ModelFileError, match="is damaged"):
        read_foreign_archive(lost)
    packed = archive(tmp_path / "packed.model", records, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelFileError, match="compressed"):
        read_foreign_archive(packed)
    cut = next(name for name in records if name.endswith("data.pkl"))
    cut_file = archive(tmp_path / "cut.model", {**records, cut: records[cut][:-20]})
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_foreign_archive(cut_file)


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    value = torch.ones(4, dtype=torch.float64)
    path = saved(
        Call(torch._utils._rebuild_tensor_v2, value.untyped_storage(), 2, (4,), (1,), False, {}),
        tmp_path,
    )
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_foreign_archive(path)
