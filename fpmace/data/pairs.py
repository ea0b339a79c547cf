"""Batches that keep together the configurations of a pair: one geometry, several fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch.utils.data import Sampler

from fpmace.errors import ConfigError

if TYPE_CHECKING:
    from fpmace.data.loader import EpochSampler


def pair_units(pair_ids: Sequence[int], order: Sequence[int]) -> list[list[int]]:
    """Indices that belong together, by first appearance in ``order``; singles stand alone.

    Args:
        pair_ids: ``pair_id`` of each configuration, negative where it has none.
        order: indices in the order of an epoch.
    """
    units: dict[tuple[bool, int], list[int]] = {}
    for index in order:
        number = pair_ids[index]
        units.setdefault((True, number) if number >= 0 else (False, index), []).append(index)
    return list(units.values())


def pack(units: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Fill batches with whole units: a unit that does not fit waits for the next batch."""
    batches: list[list[int]] = []
    waiting = list(units)
    while waiting:
        batch: list[int] = []
        later = []
        for position, unit in enumerate(waiting):
            if len(batch) == batch_size:
                later += waiting[position:]
                break
            if len(batch) + len(unit) <= batch_size:
                batch += unit
            else:
                later.append(unit)
        batches.append(batch)
        waiting = later
    return batches


class PairBatchSampler(Sampler[list[int]]):
    """Batches of an epoch, in the order of an ``EpochSampler``, that cut no pair in two.

    Args:
        order: gives the order of each epoch, over the whole data set.
        pair_ids: ``pair_id`` of each configuration, negative where it has none.
        batch_size: structures in a batch at most.
        drop_last: leave out a last batch that is not full.
        rank, world_size: this is process ``rank`` of ``world_size``, which share the pairs.

    Raises:
        ConfigError: a pair does not fit in a batch.
    """

    def __init__(
        self,
        order: EpochSampler,
        pair_ids: Sequence[int],
        batch_size: int,
        *,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.order, self.pair_ids = order, list(pair_ids)
        self.batch_size, self.drop_last = batch_size, drop_last
        self._batches: tuple[int, list[list[int]]] | None = None
        largest = max(pair_units(self.pair_ids, range(len(self.pair_ids))), key=len, default=[])
        if len(largest) > batch_size:
            raise ConfigError(
                f"the {len(largest)} configurations of pair_id {self.pair_ids[largest[0]]} do not "
                f"fit in a batch of {batch_size}; give {len(largest)} or more, or number pairs "
                "anew if files were joined",
                where="batch_size",
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``."""
        self.order.set_epoch(epoch)

    def batches(self) -> list[list[int]]:
        """The batches of the current epoch."""
        epoch = self.order.epoch
        if self._batches is None or self._batches[0] != epoch:
            units = pair_units(self.pair_ids, self.order.order())[self.rank :: self.world_size]
            found = pack(units, self.batch_size)
            if self.drop_last and found and len(found[-1]) < self.batch_size:
                found = found[:-1]
            self._batches = epoch, found
        return self._batches[1]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches())

    def __len__(self) -> int:
        return len(self.batches())
