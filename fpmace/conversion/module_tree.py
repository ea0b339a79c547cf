"""A foreign model as a tree of modules with plain attributes, read from stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fpmace.conversion.safe_archive import Foreign, class_name, class_path
from fpmace.errors import ModelFileError

_REQUIRED: Any = object()


@dataclass(frozen=True)
class Module:
    """A stand-in for a torch module, and where it is.

    Attributes:
        foreign: the stand-in.
        name: its place, as in a state dict; empty for the whole model.
        file: the file it was read from, for messages.
    """

    foreign: Foreign
    name: str
    file: str

    @property
    def class_name(self) -> str:
        return str(class_name(self.foreign))

    @property
    def class_path(self) -> str:
        return str(class_path(self.foreign))

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes as pickled, torch's own included."""
        return self.foreign.attributes

    def refuse(self, message: str) -> ModelFileError:
        """An error that names file and place."""
        place = f"'{self.name}': " if self.name else ""
        return ModelFileError(f"{self.file}: {place}{message}")

    def children(self) -> dict[str, Module]:
        """The modules of this module that are not None."""
        entries = self.attributes.get("_modules")
        return {
            str(key): Module(value, f"{self.name}.{key}" if self.name else str(key), self.file)
            for key, value in (entries if isinstance(entries, dict) else {}).items()
            if isinstance(value, Foreign)
        }

    def find(self, path: str) -> Module | None:
        """The module at a dotted path below this one, or None."""
        module: Module | None = self
        for key in path.split("."):
            module = None if module is None else module.children().get(key)
        return module

    def child(self, path: str) -> Module:
        """The module at a dotted path below this one.

        Raises:
            ModelFileError: if there is none.
        """
        module = self.find(path)
        if module is None:
            raise self.refuse(f"has no part '{path}'; is it a model of another kind?")
        return module

    def items(self) -> list[Module]:
        """The modules of a list, in order."""
        children = self.children()
        return [children[key] for key in sorted(children, key=lambda key: (len(key), key))]

    def walk(self) -> Iterator[Module]:
        """This module and all below it.

        Raises:
            ModelFileError: if a module contains itself.
        """
        yield from self._walk(())

    def _walk(self, parents: tuple[int, ...]) -> Iterator[Module]:
        if id(self.foreign) in parents:
            raise self.refuse("is a module that contains itself")
        yield self
        for child in self.children().values():
            yield from child._walk((*parents, id(self.foreign)))

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of this module alone, by their short names."""
        found: dict[str, Tensor] = {}
        transient = self.attributes.get("_non_persistent_buffers_set", ())
        for group in ("_parameters", "_buffers"):
            entries = self.attributes.get(group)
            for key, value in (entries if isinstance(entries, dict) else {}).items():
                if isinstance(value, Tensor) and not (group == "_buffers" and key in transient):
                    found[str(key)] = value
        return found

    def parameters(self) -> set[str]:
        """Short names of the tensors of this module alone that were trained."""
        entries = self.attributes.get("_parameters")
        found = entries.items() if isinstance(entries, dict) else ()
        return {str(key) for key, value in found if isinstance(value, Tensor) and value.numel()}

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers of this module and all below, as in a state dict."""
        return {
            f"{module.name}.{key}" if module.name else key: value
            for module in self.walk()
            for key, value in module.tensors().items()
        }

    def value(self, name: str, default: Any = _REQUIRED) -> Any:
        """An attribute or buffer in plain terms: numbers, strings, lists; irreps as strings.

        Raises:
            ModelFileError: if it is missing without a default, or is anything else.
        """
        sources = (self.attributes, self.tensors())
        for source in sources:
            if name in source:
                return self._plain(name, source[name])
        if default is _REQUIRED:
            raise self.refuse(f"has no '{name}'; is it a model of another kind?")
        return default

    def _plain(self, name: str, value: Any) -> Any:
        try:
            return plain(value)
        except (TypeError, ValueError, IndexError) as error:
            raise self.refuse(f"'{name}' is not understood ({error})") from error


def stand_in(path: str, **attributes: Any) -> Foreign:
    """A stand-in for a module of class ``path``; modules and tensors go where torch has them."""
    state: dict[str, Any] = {"_modules": {}, "_parameters": {}, "_buffers": {}}
    for key, value in attributes.items():
        if isinstance(value, Foreign):
            state["_modules"][key] = value
        elif isinstance(value, Tensor):
            state["_parameters"][key] = value
        else:
            state[key] = value
    made = type("Foreign", (Foreign,), {"path": path})()
    made.state = state
    return made


def plain(value: Any) -> Any:
    """A value of a pickle in plain terms; see :meth:`Module.value`.

    Raises:
        TypeError, ValueError, IndexError: if it has none.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return _short(value) if value.dim() == 0 else [plain(item) for item in value]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    name = class_name(value)
    if name == "Irreps":
        return "+".join(_block(item) for item in value.args[0])
    if name == "scalar":
        return _numpy_scalar(value)
    raise TypeError(f"a {class_path(value) or type(value).__name__}")


def _short(value: Tensor) -> Any:
    """A number; for float32 the shortest decimal that it rounds from (4.3, not 4.30000019)."""
    if value.is_floating_point():
        return float(str(value.detach().numpy()[()]))
    return value.item()


def _block(item: Foreign) -> str:
    multiplicity, irrep = _flat(item)
    degree, parity = _flat(irrep)
    return f"{int(multiplicity)}x{int(degree)}{'e' if parity == 1 else 'o'}"


def _flat(item: Foreign) -> tuple[Any, ...]:
    """Arguments of a tuple-like class, whether it was made from a tuple or from its elements."""
    args = item.args
    return tuple(args[0]) if len(args) == 1 else args


def _numpy_scalar(value: Foreign) -> Any:
    kind, raw = value.args
    return np.frombuffer(raw, dtype=_NUMPY_TYPES[_flat(kind)[0]])[0].item()


_NUMPY_TYPES = {"f8": "<f8", "f4": "<f4", "i8": "<i8", "i4": "<i4", "b1": "?"}
