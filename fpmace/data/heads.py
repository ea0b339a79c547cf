"""Heads: labels of several methods in one training, each with its files, keys and free atoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fpmace.data.keys import KEY_OPTIONS, PROPERTIES, KeyMapping
from fpmace.errors import ConfigError, DataError, suggestion

HEAD_KEY = "head"
"""Info key that says which head a configuration of a file with several belongs to."""

OF_FOUNDATION = ("foundation", "estimated")
"""Words for atomic energies that a foundation model gives."""

_FILES = ("train_file", "valid_file", "test_file")
_BLOCKS = ("info_keys", "arrays_keys")
_OPTIONS = (*_FILES, "E0s", "weight", *_BLOCKS)


@dataclass(frozen=True)
class Head:
    """One head.

    Attributes:
        name: as given under ``heads``.
        keys: where its labels stand.
        train_file, valid_file, test_file: files that hold this head alone; None: the files of
            the run, in which ``head`` on the comment line names the head.
        E0s: its atomic energies; None: as the run's ``E0s`` says.
        weight: factor on the weight of its configurations.
    """

    name: str
    keys: KeyMapping = field(default_factory=KeyMapping)
    train_file: str | None = None
    valid_file: str | None = None
    test_file: str | None = None
    E0s: str | Mapping[int, float] | None = None
    weight: float = 1.0


def parse_heads(heads: Mapping[str, object] | None) -> tuple[Head, ...]:
    """Read ``heads: {name: {train_file, ..., E0s, weight, info_keys, arrays_keys}}``.

    ``energy_key`` and the like stand for entries of the key blocks.

    Returns:
        The heads in their order; one named ``Default`` if none are given.

    Raises:
        ConfigError: naming the head and the option.
    """
    if heads and not isinstance(heads, Mapping):
        raise ConfigError(
            f"expected a mapping from a name to its files and keys, got {heads!r}", where="heads"
        )
    return tuple(_parse(str(name), given) for name, given in (heads or {"Default": {}}).items())


def _parse(name: str, given: object) -> Head:
    where = f"heads.{name}"
    if not name or not all(c.isalnum() or c in "_-.+" for c in name):
        raise ConfigError(f"{name!r} is no name of letters, digits and _-.+", where="heads")
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"expected a mapping with {', '.join(_OPTIONS)}, got {given!r}", where=where
        )
    for option in given:
        if option not in (*_OPTIONS, *KEY_OPTIONS):
            raise ConfigError(
                f"unknown{suggestion(str(option), _OPTIONS)} (known: {', '.join(_OPTIONS)}, "
                "energy_key and the like)",
                where=f"{where}.{option}",
            )
    for option in _FILES:
        if given.get(option) is not None and not isinstance(given[option], str):
            raise ConfigError(f"expects a file, got {given[option]!r}", where=f"{where}.{option}")
    weight = given.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
        raise ConfigError(f"expects a number >= 0, got {weight!r}", where=f"{where}.weight")
    energies = given.get("E0s")
    if energies is not None and not isinstance(energies, str | Mapping):
        raise ConfigError(
            f"expects a word or {{atomic number: eV}}, got {energies!r}", where=f"{where}.E0s"
        )
    files = {option: given.get(option) for option in _FILES}
    return Head(name, _keys(name, given), E0s=energies, weight=float(weight), **files)


def _keys(name: str, given: Mapping[str, object]) -> KeyMapping:
    blocks = {block: given[block] for block in _BLOCKS if block in given}
    for option, item in KEY_OPTIONS.items():
        if option in given:
            section = PROPERTIES[item].section
            known = blocks.get(section, {})
            blocks[section] = {
                **(known if isinstance(known, Mapping) else {}),
                item: given[option],
            }
    return KeyMapping.from_heads({name: blocks})


def find_head(heads: Sequence[Head], name: object, where: str) -> Head:
    """The head of a name; the only one needs none.

    Raises:
        DataError: listing the heads, if the name is missing or not one of them.
    """
    names = [head.name for head in heads]
    if name is None:
        if len(heads) == 1:
            return heads[0]
        raise DataError(
            f"{where}: names no head; put {HEAD_KEY}=NAME on its comment line, or name one for "
            f"the whole file (heads.NAME.train_file, --head); heads: {', '.join(names)}"
        )
    if str(name) not in names:
        raise DataError(
            f"{where}: {HEAD_KEY} is '{name}'{suggestion(str(name), names)} "
            f"(heads: {', '.join(names)})"
        )
    return heads[names.index(str(name))]
