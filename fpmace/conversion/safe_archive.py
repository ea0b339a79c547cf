"""Read a ``torch.save`` archive of any package without importing it or running its code.

The pickle inside is opened by an unpickler that knows tensors and plain containers. Every other
class or function that the pickle names, ``os.system`` as much as ``torch.nn.Linear``, is stood in
for by a :class:`Foreign` that only records what the pickle says about it.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from fpmace.errors import ModelFileError


class Foreign:
    """Stands in for an object of a class that is not known here; does nothing.

    Attributes:
        path: class attribute, ``module.Name`` as the pickle says.
        args: arguments of the call that would have made the object.
        state: what would have been handed to ``__setstate__``; for most objects their
            attributes by name. None if there was nothing.
        appended: elements that would have been appended.
        items: pairs that would have been set by key.
    """

    path: str = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Foreign:
        self = object.__new__(cls)
        self.args = (*args, kwargs) if kwargs else args
        self.state = None
        self.appended = []
        self.items = []
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any
        self.appended: list[Any]
        self.items: list[tuple[Any, Any]]

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        self.appended.append(item)

    def extend(self, items: Iterable[Any]) -> None:
        self.appended.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def __repr__(self) -> str:
        return f"<stand-in for {self.path}>"

    @property
    def attributes(self) -> dict[str, Any]:
        """The state as attributes by name; empty if it is anything else."""
        return self.state if isinstance(self.state, dict) else {}


def class_path(value: Any) -> str | None:
    """``module.Name`` that a stand-in object, class or function stands for; None for others."""
    if isinstance(value, Foreign) or (isinstance(value, type) and issubclass(value, Foreign)):
        return value.path
    return None


def class_name(value: Any) -> str | None:
    """The last component of :func:`class_path`; of a pickled ``getattr(x, name)``, the name."""
    path = class_path(value)
    if path in ("builtins.getattr", "__builtin__.getattr") and isinstance(value, Foreign):
        return str(value.args[-1])
    return None if path is None else path.rpartition(".")[2]


def read_foreign_archive(path: str | Path) -> Any:
    """Read the object that ``torch.save`` wrote; foreign classes become :class:`Foreign`.

    Tensors are CPU tensors that own their memory, parameters are plain tensors.

    Raises:
        ModelFileError: if the file is missing, damaged, TorchScript, or of torch's format
            before 1.6.
    """
    place = Path(path)
    if not place.is_file():
        raise ModelFileError(f"{path}: no such file")
    if not zipfile.is_zipfile(place):
        raise ModelFileError(
            f"{path}: is not a zip archive of torch.save (damaged, or written by a torch before "
            "1.6; load it there and save it again)"
        )
    try:
        with zipfile.ZipFile(place) as archive:
            root = _root(path, archive.namelist())
            reader = _Reader(path, archive, root)
            return _Unpickler(io.BytesIO(reader.record("data.pkl")), reader).load()
    except ModelFileError:
        raise
    except Exception as error:  # a damaged or hostile archive fails in any way it likes
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelFileError(f"{path}: cannot be read ({reason})") from error


def _root(path: str | Path, names: list[str]) -> str:
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise ModelFileError(
            f"{path}: is a compiled (TorchScript) model; convert the plain model file that was "
            "saved beside it"
        )
    if len(roots) != 1:
        raise ModelFileError(f"{path}: is not an archive of torch.save (no data.pkl in it)")
    return roots[0]


class _Reader:
    """Records of one archive."""

    def __init__(self, path: str | Path, archive: zipfile.ZipFile, root: str) -> None:
        self.path, self.archive, self.root = path, archive, root
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ModelFileError(f"{path}: was written on a big-endian machine; not supported")

    def record(self, name: str) -> bytes:
        try:
            info = self.archive.getinfo(f"{self.root}{name}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise ModelFileError(f"{self.path}: record {name} is compressed; not supported")
            return self.archive.read(info)
        except (KeyError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise ModelFileError(f"{self.path}: is damaged (record {name}: {error})") from error


class _Storage:
    """Numbers of one or more tensors, one-dimensional."""

    __slots__ = ("values",)

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("the state of a storage cannot be set")


class _Known:
    """A function that the pickle may call; its attributes are out of the pickle's reach."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("the state of a function cannot be set")


class _PlainDict(dict[Any, Any]):
    """An ordered dict whose attributes are ignored."""

    def __setstate__(self, state: Any) -> None:
        pass


class _StorageType:
    """The class of a storage; names its dtype."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("the state of a storage type cannot be set")


def _rebuild_tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    # as_strided checks the bounds against the storage.
    return torch.as_strided(storage.values, tuple(size), tuple(stride), offset).clone()


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _rebuild_from_type(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    if not isinstance(function, _Known):
        raise pickle.UnpicklingError("a tensor subclass of unknown making")
    return function(*args)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _plain_tuple(items: Iterable[Any] = ()) -> tuple[Any, ...]:
    return tuple(items)


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "bool")

_KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _Known(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Known(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Known(_rebuild_parameter),
    "torch._utils._rebuild_parameter_with_state": _Known(_rebuild_parameter),
    "torch._tensor._rebuild_from_type_v2": _Known(_rebuild_from_type),
    "torch.Size": _Known(_plain_tuple),
    "_codecs.encode": _Known(_encode),
    "collections.OrderedDict": _PlainDict,
    **{
        f"{module}.{kind.__name__}": kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset)
    },
    **{f"torch.{name}": _StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": getattr(torch, name) for name in _DTYPES},
}
"""All that a pickle may name and get in earnest."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: io.BytesIO, reader: _Reader) -> None:
        super().__init__(content)
        self._reader = reader
        self._classes: dict[str, type[Foreign]] = {}
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        path = f"{module}.{name}"
        if path in _KNOWN:
            return _KNOWN[path]
        if path not in self._classes:
            self._classes[path] = type("Foreign", (Foreign,), {"path": path})
        return self._classes[path]

    def persistent_load(self, identity: Any, /) -> _Storage:
        kind, storage_type, key, _device, n_values = identity
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"a storage of unknown type {storage_type!r}")
        if key not in self._storages:
            self._storages[key] = _Storage(self._values(str(key), storage_type.dtype, n_values))
        return self._storages[key]

    def _values(self, key: str, dtype: torch.dtype, n_values: int) -> Tensor:
        raw = bytearray(self._reader.record(f"data/{key}"))
        if len(raw) != n_values * dtype.itemsize:
            raise pickle.UnpicklingError(
                f"record data/{key} has {len(raw)} bytes, not {n_values} values of {dtype}"
            )
        return torch.frombuffer(raw, dtype=dtype) if raw else torch.zeros(0, dtype=dtype)
