"""Batches of a data set in an order fixed by (seed, epoch)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sized
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from fpmace.data.atomic_data import AtomicData, collate
from fpmace.data.batch import Batch
from fpmace.data.pairs import PairBatchSampler
from fpmace.errors import ConfigError


class EpochSampler(Sampler[int]):
    """Indices in an order that depends on (seed, epoch) alone, so that a run can be resumed.

    Args:
        n_items: size of the data set.
        shuffle: False: ascending order in every epoch.
        seed: seed of the run.
        rank, world_size: this is process ``rank`` of ``world_size``; each index is given to one
            of them, so that their numbers differ by one at most.

    Raises:
        ConfigError: ``rank`` is not one of the processes.
    """

    def __init__(
        self, n_items: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"must be from 0 to {world_size - 1}, got {rank}", where="rank")
        self.n_items, self.shuffle, self.seed, self.epoch = n_items, shuffle, seed, 0
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """Return this process's part of the order of the current epoch."""
        order = np.arange(self.n_items)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_items)
        return [int(index) for index in order[self.rank :: self.world_size]]

    def __iter__(self) -> Iterator[int]:
        return iter(self.order())

    def __len__(self) -> int:
        return len(range(self.rank, self.n_items, self.world_size))


class StructureLoader:
    """Iterate over ``Batch`` objects; ``set_epoch`` before each epoch fixes the order."""

    def __init__(
        self, loader: DataLoader[AtomicData], sampler: EpochSampler | PairBatchSampler
    ) -> None:
        self.loader, self.sampler = loader, sampler

    @property
    def dataset(self) -> object:
        """The data set behind the batches."""
        return self.loader.dataset

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch``; the same (seed, epoch) gives the same batches."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        return cast("Iterator[Batch]", iter(self.loader))

    def __len__(self) -> int:
        return len(self.loader)


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
    rank: int = 0,
    world_size: int = 1,
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
        rank, world_size: see ``EpochSampler``.

    Raises:
        ConfigError: a batch size below 1, a negative number of workers, or a wrong rank.
    """
    if batch_size < 1:
        raise ConfigError(f"must be 1 or more, got {batch_size}", where="batch_size")
    if num_workers < 0:
        raise ConfigError(f"must be 0 or more, got {num_workers}", where="num_workers")
    shared = {"rank": rank, "world_size": world_size}
    sampler = EpochSampler(
        len(cast("Sized", dataset)), shuffle=shuffle, seed=seed, **({} if keep_pairs else shared)
    )
    pairs = None
    if keep_pairs:
        pairs = PairBatchSampler(
            sampler, dataset.pair_ids(), batch_size, drop_last=drop_last, **shared
        )
    whole: dict[str, object] = {
        "batch_size": batch_size,
        "sampler": sampler,
        "drop_last": drop_last,
    }
    loader: DataLoader[AtomicData] = DataLoader(
        dataset,
        **(whole if pairs is None else {"batch_sampler": pairs}),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        collate_fn=partial(collate, dtype=dtype),
        generator=torch.Generator(),
        worker_init_fn=_quiet,
    )
    return StructureLoader(loader, sampler if pairs is None else pairs)
