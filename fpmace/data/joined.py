"""Several data sets, one per head, shown as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from fpmace.data.atomic_data import AtomicData
from fpmace.data.info import DatasetInfo

if TYPE_CHECKING:
    from fpmace.data.dataset import StructureDataset

_PAIRS = 2**40
"""Between the pair ids of two parts: the same number in two files is no pair."""


class JoinedDataset(Dataset[AtomicData]):
    """The members of several data sets, part after part; see ``StructureDataset``.

    Energies of free atoms are those of the parts, each of which belongs to one head.

    Attributes:
        parts: data set by head.
    """

    def __init__(self, parts: dict[str, StructureDataset]) -> None:
        first = next(iter(parts.values()))
        self.parts, self.r_max = parts, first.r_max
        self.path = ", ".join(dict.fromkeys(part.path for part in parts.values()))
        self.options = dataclasses.replace(first.options, head=None)
        self.isolated_atom_energies: dict[int, float] = {}
        self.info = DatasetInfo()
        for part in parts.values():
            self.info = self.info.merge(part.info)
        self._ends = np.cumsum([len(part) for part in parts.values()])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> AtomicData:
        number, place = self._place(index)
        item = list(self.parts.values())[number][place]
        pair = item.labels["pair_id"]
        shifted = pair.where(pair < 0, pair + number * _PAIRS)
        return dataclasses.replace(item, labels={**item.labels, "pair_id": shifted})

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the part, and the index there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)

    def groups(self) -> list[str]:
        """Return the ``split_by`` value of each member, with its head where it has one."""
        return [
            f"{head}:{group}" if group else ""
            for head, part in self.parts.items()
            for group in part.groups()
        ]

    def config_types(self) -> list[str]:
        """Return the ``config_type`` of each member."""
        return list(chain.from_iterable(part.config_types() for part in self.parts.values()))

    def pair_ids(self) -> list[int]:
        """Return the ``pair_id`` of each member, -1 where it has none."""
        return [
            pair + number * _PAIRS if pair >= 0 else pair
            for number, part in enumerate(self.parts.values())
            for pair in part.pair_ids()
        ]

    def sizes(self) -> list[tuple[int, int]]:
        """Return the numbers of atoms and of edges of each member."""
        return list(chain.from_iterable(part.sizes() for part in self.parts.values()))

    def heads(self) -> list[str]:
        """Return the head of each member."""
        return [head for head, part in self.parts.items() for _ in range(len(part))]

    def subset(self, indices: Sequence[int]) -> JoinedDataset:
        """Return the members at ``indices``, part by part."""
        chosen: dict[int, list[int]] = {}
        for index in indices:
            number, place = self._place(int(index))
            chosen.setdefault(number, []).append(place)
        items = list(self.parts.items())
        return JoinedDataset({items[n][0]: items[n][1].subset(chosen[n]) for n in sorted(chosen)})
