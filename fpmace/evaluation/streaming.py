"""Extended XYZ read in a stream: one survey without numbers, then frame by frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ase import Atoms

from fpmace.data.configuration import Configuration, configuration_from_atoms
from fpmace.data.extxyz import Frame, iterate_frames, read_frame_info, read_structures
from fpmace.data.keys import (
    CONFIG_TYPE_KEY,
    DEFAULT_CONFIG_TYPE,
    PROPERTIES,
    KeyMapping,
    label_counts,
)
from fpmace.data.options import DataOptions
from fpmace.errors import DataError, suggestion

_MAX_TYPES = 100


@dataclass
class Survey:
    """What a file holds, found without parsing its numbers.

    Attributes:
        n_configurations: number of frames.
        info_keys, arrays_keys: how many frames have each key.
        config_types: how many frames have each config_type.
    """

    n_configurations: int = 0
    info_keys: Counter[str] = field(default_factory=Counter)
    arrays_keys: Counter[str] = field(default_factory=Counter)
    config_types: Counter[str] = field(default_factory=Counter)

    def count(self, name: str, keys: KeyMapping) -> int:
        """How many configurations carry property ``name``."""
        found = self.info_keys if PROPERTIES[name].per == "graph" else self.arrays_keys
        return found[keys.key(name)]

    def labels(self, keys: KeyMapping) -> dict[str, int]:
        """Number of configurations by property."""
        return label_counts({name: self.count(name, keys) for name in PROPERTIES})


def survey(path: str | Path) -> Survey:
    """Count configurations and keys.

    Raises:
        DataError: the file is missing, empty or truncated, or a comment line cannot be read.
    """
    found = Survey()
    for info in read_frame_info(path, iterate_frames(path)):
        found.n_configurations += 1
        columns = str(info.pop("Properties", "species:S:1:pos:R:3")).split(":")[::3]
        found.arrays_keys.update(columns)
        if "charge" in columns:  # as ASE writes the array that it reads as charges
            found.arrays_keys["charges"] += 1
        found.info_keys.update(str(key) for key in info)
        if len(found.config_types) < _MAX_TYPES:
            found.config_types[str(info.get(CONFIG_TYPE_KEY, DEFAULT_CONFIG_TYPE))] += 1
    return found


def check_explicit_keys(found: Survey, keys: KeyMapping, path: str | Path) -> None:
    """Refuse a key that the user named and no configuration has.

    Raises:
        DataError: naming the key and those that are there.
    """
    for name in sorted(keys.explicit):
        if found.count(name, keys) == 0:
            per_graph = PROPERTIES[name].per == "graph"
            present = sorted(found.info_keys if per_graph else found.arrays_keys)
            raise DataError(
                f"{path}: no configuration has '{keys.key(name)}' ({name})"
                f"{suggestion(keys.key(name), present)} (present: {', '.join(present)})"
            )


def check_required(
    found: Survey, required: Iterable[str], keys: KeyMapping, path: str | Path, reason: str
) -> None:
    """Refuse a file in which some configuration lacks what the calculation reads.

    Raises:
        DataError: naming the property, the key and the reason.
    """
    for name in required:
        count = found.labels(keys)[name]
        if count < found.n_configurations:
            key = keys.key(name)
            if name == "charges":
                key = f"{keys.key('atomic_multipoles')} or {key}"
            raise DataError(
                f"{path}: {reason} needs {key} ({name}) in every configuration; "
                f"{count} of {found.n_configurations} have it"
            )


def read(
    path: str | Path, options: DataOptions, frames: Iterable[Frame]
) -> Iterator[tuple[Atoms, Configuration]]:
    """Yield structures with what the contract knows of them.

    Raises:
        DataError: a frame cannot be parsed or holds an unusable value.
    """
    for frame, atoms in read_structures(path, frames):
        yield (
            atoms,
            configuration_from_atoms(atoms, options, source=str(path), index=frame.index),
        )
