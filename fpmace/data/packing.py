"""Which structures make up a batch: whole pairs, up to a number of structures or a budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch.utils.data import Sampler

from fpmace.errors import ConfigError

if TYPE_CHECKING:
    from fpmace.data.loader import EpochSampler

_LOOK_AHEAD = 64
"""Units that may be passed over in search of one that fits."""


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


def pack(
    units: Sequence[Sequence[int]], most: float, costs: Sequence[float] | None = None
) -> list[list[int]]:
    """Fill batches with whole units: a unit that does not fit waits for the next batch.

    Args:
        units: indices that belong together.
        most: sum of the costs in a batch; a unit that costs more is a batch of its own.
        costs: cost by index; 1 each if not given.
    """
    waiting = deque(units)
    batches: list[list[int]] = []
    while waiting:
        batch: list[int] = []
        passed: list[Sequence[int]] = []
        room = most
        while waiting and room > 0 and len(passed) < _LOOK_AHEAD:
            unit = waiting.popleft()
            cost = len(unit) if costs is None else sum(costs[index] for index in unit)
            if cost <= room or not batch:
                batch += unit
                room -= cost
            else:
                passed.append(unit)
        waiting.extendleft(reversed(passed))
        batches.append(batch)
    return batches


def check_pairs(pair_ids: Sequence[int], batch_size: int) -> None:
    """Refuse batches that cannot hold a pair.

    Raises:
        ConfigError: naming the pair.
    """
    largest = max(pair_units(pair_ids, range(len(pair_ids))), key=len, default=[])
    if len(largest) > batch_size:
        raise ConfigError(
            f"the {len(largest)} configurations of pair_id {pair_ids[largest[0]]} do not fit in "
            f"a batch of {batch_size}; give {len(largest)} or more, or number pairs anew if files "
            "were joined",
            where="batch_size",
        )


class BatchSampler(Sampler[list[int]]):
    """This process's batches of an epoch, packed in the order of an ``EpochSampler``.

    All processes pack the same batches and take them in turn, so that one step of all of them
    holds the structures of consecutive batches. The last step may leave some without a batch.

    Args:
        order: gives the order of each epoch, over the whole data set.
        most: structures in a batch, or the largest sum of ``costs``.
        costs: what each structure costs; 1 if not given.
        pair_ids: ``pair_id`` of each configuration, negative where it has none; pairs stay whole.
        drop_last: leave out a last batch that is not full.
        rank, world_size: this is process ``rank`` of ``world_size``.

    Raises:
        ConfigError: ``rank`` is not one of the processes.
    """

    def __init__(
        self,
        order: EpochSampler,
        most: float,
        *,
        costs: Sequence[float] | None = None,
        pair_ids: Sequence[int] | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"must be from 0 to {world_size - 1}, got {rank}", where="rank")
        self.order, self.most, self.costs, self.pair_ids = order, most, costs, pair_ids
        self.drop_last, self.rank, self.world_size = drop_last, rank, world_size
        self._packed: tuple[int, list[list[int]]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``."""
        self.order.set_epoch(epoch)

    def batches(self) -> list[list[int]]:
        """The batches of the current epoch that this process takes."""
        return self._all()[self.rank :: self.world_size]

    def n_rounds(self) -> int:
        """Batches of the process that has the most of them."""
        return len(self._all()[:: self.world_size])

    def _all(self) -> list[list[int]]:
        epoch = self.order.epoch
        if self._packed is None or self._packed[0] != epoch:
            order = self.order.order()
            ids = self.pair_ids
            units = [[index] for index in order] if ids is None else pair_units(ids, order)
            found = pack(units, self.most, self.costs)
            if self.drop_last and found and len(found[-1]) < self.most:
                found = found[:-1]
            self._packed = epoch, found
        return self._packed[1]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches())

    def __len__(self) -> int:
        return len(self.batches())
