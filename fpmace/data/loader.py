"""Batches of a data set in an order fixed by (seed, epoch)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from fpmace.data.atomic_data import AtomicData, collate
from fpmace.data.batch import Batch
from fpmace.data.budget import BatchBudget
from fpmace.data.packing import BatchSampler, check_pairs
from fpmace.errors import ConfigError


class EpochSampler(Sampler[int]):
    """Indices in an order that depends on (seed, epoch) alone, so that a run can be resumed.

    Args:
        n_items: size of the data set.
        shuffle: False: ascending order in every epoch.
        seed: seed of the run.
    """

    def __init__(self, n_items: int, *, shuffle: bool, seed: int = 0) -> None:
        self.n_items, self.shuffle, self.seed, self.epoch = n_items, shuffle, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """Return the order of the current epoch."""
        order = np.arange(self.n_items)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_items)
        return [int(index) for index in order]

    def __iter__(self) -> Iterator[int]:
        return iter(self.order())

    def __len__(self) -> int:
        return self.n_items


class StructureLoader:
    """Iterate over ``Batch`` objects; ``set_epoch`` before each epoch fixes the order."""

    def __init__(self, loader: DataLoader[AtomicData], sampler: BatchSampler) -> None:
        self.loader, self.sampler = loader, sampler

    @property
    def dataset(self) -> object:
        """The data set behind the batches."""
        return self.loader.dataset

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``; the same (seed, epoch) gives the same batches."""
        self.sampler.set_epoch(epoch)

    def members(self) -> list[int]:
        """Positions in the data set of the structures, in the order of the batches."""
        return [index for batch in self.sampler.batches() for index in batch]

    def steps(self, accumulate: int = 1) -> Steps:
        """The batches in groups of ``accumulate``; as many groups in every process."""
        return Steps(self, accumulate)

    def __iter__(self) -> Iterator[Batch]:
        return cast("Iterator[Batch]", iter(self.loader))

    def __len__(self) -> int:
        return len(self.loader)


@dataclass(frozen=True)
class Steps:
    """Groups of batches, one for each step; the last ones may be short or empty."""

    loader: StructureLoader
    accumulate: int

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = iter(self.loader)
        for _ in range(len(self)):
            yield list(islice(batches, self.accumulate))

    def __len__(self) -> int:
        return -(-self.loader.sampler.n_rounds() // self.accumulate)


def _quiet(worker: int) -> None:
    """Errors of a worker reach the parent; its threads have nothing to add when that is gone."""
    sys.excepthook = lambda *_: None


def make_loader(
    dataset: Any,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    drop_last: bool = False,
    dtype: torch.dtype = torch.float64,
    pin_memory: bool = False,
    keep_pairs: bool = False,
    spill: bool = False,
    rank: int = 0,
    world_size: int = 1,
    budget: BatchBudget | None = None,
) -> StructureLoader:
    """Return a loader of batches.

    Args:
        dataset: what ``open_dataset`` returned.
        batch_size: structures in a batch.
        shuffle: shuffle anew in every epoch, by (seed, epoch).
        seed: seed of the order; torch's global generator is neither used nor moved on.
        num_workers: processes that read ahead; 0 reads in this one.
        drop_last: leave out a last batch that is not full.
        dtype: floating dtype of the batches.
        pin_memory: keep batches in page-locked memory, for copies to a GPU.
        keep_pairs: configurations with the same ``pair_id`` come in the same batch; batches may
            be smaller for it.
        spill: pairs that do not fit make larger batches, in place of an error.
        rank, world_size: see ``BatchSampler``.
        budget: what a batch may hold, in place of ``batch_size``.

    Raises:
        ConfigError: a batch size below 1, a negative number of workers, or a wrong rank.
    """
    if batch_size < 1:
        raise ConfigError(f"must be 1 or more, got {batch_size}", where="batch_size")
    if num_workers < 0:
        raise ConfigError(f"must be 0 or more, got {num_workers}", where="num_workers")
    pair_ids = dataset.pair_ids() if keep_pairs else None
    costs = None if budget is None else budget.costs(dataset.sizes(), dataset.path)
    if pair_ids is not None and not spill and budget is None:
        check_pairs(pair_ids, batch_size)
    sampler = BatchSampler(
        EpochSampler(len(cast("Sized", dataset)), shuffle=shuffle, seed=seed),
        batch_size if budget is None else budget.most,
        costs=costs,
        pair_ids=pair_ids,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
    )
    loader: DataLoader[AtomicData] = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        collate_fn=partial(collate, dtype=dtype),
        generator=torch.Generator(),
        worker_init_fn=_quiet,
    )
    return StructureLoader(loader, sampler)
