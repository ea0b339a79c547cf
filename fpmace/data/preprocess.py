"""Turning XYZ files into HDF5 shards, in parallel and in a stream."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fpmace.data.checks import check_geometry, check_overlap
from fpmace.data.configuration import Configuration
from fpmace.data.extxyz import Frame, read_frame_info, read_frames, scan_frames
from fpmace.data.hdf5_writer import ShardWriter, open_shard
from fpmace.data.heads import HEAD_KEY, find_head
from fpmace.data.info import DatasetInfo, check_config_types, check_keys
from fpmace.data.keys import CONFIG_TYPE_KEY, DEFAULT_CONFIG_TYPE
from fpmace.data.neighborhood import Array, neighborhood
from fpmace.data.options import DataOptions
from fpmace.data.split import check_groups, check_valid_fraction, split_indices
from fpmace.errors import ConfigError, DataError

Processed = tuple[Configuration, Array, Array]

CHUNK_SIZE = 64
"""Configurations that a worker process reads at a time."""


@dataclass(frozen=True)
class SplitSource:
    """Frames of a file that make up one split.

    Attributes:
        name: ``train``, ``valid`` or ``test``.
        path: extended XYZ file.
        frames: the frames to take, in order.
    """

    name: str
    path: Path
    frames: Sequence[Frame]


@dataclass(frozen=True)
class WrittenSplit:
    """What was written for one split: its shards and counts, free atoms apart."""

    name: str
    directory: Path
    shards: tuple[Path, ...]
    info: DatasetInfo
    n_isolated: int


def plan_splits(
    train_file: str | Path,
    valid_file: str | Path | None = None,
    test_file: str | Path | None = None,
    *,
    valid_fraction: float | None = None,
    split_by: str | None = None,
    seed: int = 0,
) -> list[SplitSource]:
    """Return what goes where; the training file is split if only ``valid_fraction`` is given.

    Raises:
        ConfigError: both a validation file and a fraction are given.
        DataError: a file cannot be read, or a part would be empty.
    """
    if valid_file is not None and valid_fraction is not None:
        raise ConfigError("give valid_file or valid_fraction, not both")
    train = Path(train_file)
    frames = scan_frames(train)
    splits = [SplitSource("train", train, frames)]
    if valid_file is not None:
        splits.append(SplitSource("valid", Path(valid_file), scan_frames(valid_file)))
    elif valid_fraction is not None:
        splits = _split_frames(train, frames, valid_fraction, split_by, seed)
    if test_file is not None:
        splits.append(SplitSource("test", Path(test_file), scan_frames(test_file)))
    return splits


def _split_frames(
    path: Path, frames: Sequence[Frame], valid_fraction: float, split_by: str | None, seed: int
) -> list[SplitSource]:
    check_valid_fraction(valid_fraction)
    infos = list(read_frame_info(path, list(frames)))
    groups = [str(info.get(split_by, "")) if split_by else "" for info in infos]
    check_groups(groups, split_by, str(path))
    types = [str(info.get(CONFIG_TYPE_KEY, DEFAULT_CONFIG_TYPE)) for info in infos]
    shares = {"train": 1.0 - valid_fraction, "valid": valid_fraction}
    parts = split_indices(groups, types, shares, seed)
    if not parts["valid"]:
        raise DataError(
            f"{path}: valid_fraction {valid_fraction} of {len(frames)} configurations leaves"
            " none to validate on; raise it or give a valid_file"
        )
    return [SplitSource(name, path, [frames[i] for i in part]) for name, part in parts.items()]


def of_head(split: SplitSource, name: str, options: DataOptions) -> SplitSource | None:
    """The frames of a file that belong to a head; None if there are none.

    Raises:
        DataError: a frame names no head, or one that is not among those of the options.
    """
    infos = read_frame_info(split.path, split.frames)
    frames = [
        frame
        for frame, info in zip(split.frames, infos, strict=True)
        if find_head(
            options.heads, info.get(HEAD_KEY), f"{split.path}: configuration {frame.index}"
        ).name
        == name
    ]
    return replace(split, frames=frames) if frames else None


def write_split(
    split: SplitSource,
    output: str | Path,
    r_max: float,
    options: DataOptions,
    *,
    n_shards: int = 1,
    n_processes: int = 1,
    progress: Callable[[int], object] | None = None,
) -> WrittenSplit:
    """Check the configurations of a split and write them to ``output/NAME/NAME_<k>.h5``.

    With several heads, ``options.head`` names theirs, which stands in the names of the files.

    Shards take consecutive configurations, so their order is that of the file. They appear
    together when all are whole; shards of an earlier run are removed then.

    Args:
        split: what to write.
        output: directory of the data set.
        r_max: cutoff of the neighbour lists, Angstrom.
        options: keys, checks and weights.
        n_shards: files to spread the configurations over.
        n_processes: processes that read and build neighbour lists.
        progress: called with the number of configurations done since the last call.
    """
    n_shards = min(n_shards, len(split.frames))
    directory = Path(output) / split.name
    stem = f"{split.name}_{options.head}" if options.head else split.name
    shards = tuple(directory / f"{stem}_{k}.h5" for k in range(n_shards))
    others = tuple(f"{split.name}_{h.name}_" for h in options.heads if h.name != options.head)
    source = {"path": str(split.path), "sha256": _sha256(split.path)}
    with ExitStack() as stack:
        writers = [
            stack.enter_context(open_shard(path, r_max, options, [dict(source)]))
            for path in shards
        ]
        results = process_frames(split.path, split.frames, r_max, options, n_processes)
        for count, result in enumerate(results):
            writers[count * n_shards // len(split.frames)].add(*result)
            if progress is not None:
                progress(1)
        info, isolated = _total(writers)
        if info.n_configurations == 0:
            raise DataError(f"{split.path}: the {split.name} part holds only IsolatedAtom frames")
        if split.name == "train":
            check_keys(info, options.keys, str(split.path))
            check_config_types(info.merge(isolated), options.config_type_weights)
    for path in directory.glob("*.h5"):
        if path not in shards and not (others and path.name.startswith(others)):
            path.unlink()
    return WrittenSplit(split.name, directory, shards, info, isolated.n_configurations)


def process_frames(
    path: Path, frames: Sequence[Frame], r_max: float, options: DataOptions, n_processes: int = 1
) -> Iterator[Processed]:
    """Yield (configuration, edge_index, unit_shifts) in order, checked.

    With several processes at most a few chunks are in memory at a time.
    """
    chunks = [frames[i : i + CHUNK_SIZE] for i in range(0, len(frames), CHUNK_SIZE)]
    tasks = ((path, chunk, r_max, options) for chunk in chunks)
    if n_processes <= 1:
        for task in tasks:
            yield from _process_chunk(*task)
        return
    # Unlike multiprocessing.Pool, an executor notices when a process is killed.
    pool = ProcessPoolExecutor(n_processes)
    try:
        for results in _in_order(pool, tasks, window=2 * n_processes):
            yield from results
    except BrokenProcessPool as error:
        raise DataError(
            f"{path}: a reading process was ended from outside; if memory is short, lower "
            "num_process"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, tasks: Iterator[tuple[Any, ...]], window: int
) -> Iterator[list[Processed]]:
    pending: deque[Future[list[Processed]]] = deque()
    for task in tasks:
        pending.append(pool.submit(_process_chunk, *task))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _process_chunk(
    path: Path, frames: Sequence[Frame], r_max: float, options: DataOptions
) -> list[Processed]:
    results = []
    for config in read_frames(path, list(frames), options):
        check_geometry(config, options)
        edges = neighborhood(config.positions, config.cell, config.pbc, r_max)
        check_overlap(config, *edges, options)
        results.append((config, *edges))
    return results


def _total(writers: Sequence[ShardWriter]) -> tuple[DatasetInfo, DatasetInfo]:
    info, isolated = DatasetInfo(), DatasetInfo()
    for writer in writers:
        info = info.merge(writer.info)
        isolated = isolated.merge(writer.isolated_info)
    return info, isolated


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
