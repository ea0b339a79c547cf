"""Model files whose pickle calls a function wherever a test wants it to."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fpmace.conversion.safe_archive import Foreign

_KINDS = {
    torch.float64: "Double",
    torch.float32: "Float",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.bool: "Bool",
}


class Call:
    """Pickled as ``os.system(command)``."""

    def __init__(self, command: str) -> None:
        self.command = command


class TreePickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes a tree of stand-ins as the pickle that it was read from, and calls as calls."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=2)
        self.storages: list[bytes] = []

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Call):
            self._call("os.system", (obj.command,), None)
        elif isinstance(obj, Tensor):
            self._tensor(obj.contiguous())
        elif isinstance(obj, Foreign):
            self._call(obj.path, obj.args, obj.state)
        elif isinstance(obj, type) and issubclass(obj, Foreign):
            self._name(obj.path)
        elif isinstance(obj, dict):
            super().save({**obj})
        else:
            super().save(obj, save_persistent_id)

    def _name(self, path: str) -> None:
        module, _, name = path.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())

    def _call(self, path: str, arguments: tuple[Any, ...], state: Any) -> None:
        self._name(path)
        self.save(arguments)
        self.write(pickle.REDUCE)
        if state is not None:
            self.save(state)
            self.write(pickle.BUILD)

    def _tensor(self, value: Tensor) -> None:
        raw = value.numpy().tobytes()
        self._name("torch._utils._rebuild_tensor_v2")
        self.write(pickle.MARK + pickle.MARK)
        self.save("storage")
        self._name(f"torch.{_KINDS[value.dtype]}Storage")
        for item in (str(len(self.storages)), "cpu", value.numel()):
            self.save(item)
        self.write(pickle.TUPLE + pickle.BINPERSID)
        for item in (0, tuple(value.shape), tuple(value.stride()), False, {}):
            self.save(item)
        self.write(pickle.TUPLE + pickle.REDUCE)
        self.storages.append(raw)


def write_tree(root: Foreign, path: Path) -> Path:
    """Write a tree of stand-ins as an archive of ``torch.save``."""
    stream = io.BytesIO()
    pickler = TreePickler(stream)
    pickler.dump(root)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", stream.getvalue())
        for key, raw in enumerate(pickler.storages):
            file.writestr(f"x/data/{key}", raw)
    return path


def replaced(value: Any, name: str, put: Callable[[str, Any], Any]) -> Any:
    """A copy of a tree with every named value handed to ``put``, from the leaves up."""
    if isinstance(value, dict):
        made: Any = {key: replaced(item, str(key), put) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        made = type(value)(replaced(item, "", put) for item in value)
    elif isinstance(value, Foreign):
        made = type(value)(*(replaced(item, "", put) for item in value.args))
        made.state = replaced(value.state, "", put)
    else:
        made = value
    return put(name, made)
