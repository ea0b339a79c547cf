"""A file shared out among processes, whose results the first one writes in the file's order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from fpmace.annotations import Values
from fpmace.data.budget import in_batches
from fpmace.distributed.process import Process
from fpmace.evaluation.writer import ResumableWriter

T = TypeVar("T")

_CHUNKS = 4
"""Chunks that a process works on before the results are written; evens out their sizes."""


def write_shared(
    process: Process,
    chunks: Iterable[Sequence[T]],
    work: Callable[[Sequence[T]], list[str]],
    *,
    writer: ResumableWriter | None,
    own: Callable[[], Values],
    absorb: Callable[[Values], None],
    state: Callable[[], Values],
    progress: Callable[[int], object],
) -> None:
    """Work on all chunks and write the results, so that a killed run can be gone on with.

    Chunks are the same for any number of processes, and so are the bytes written.

    Args:
        chunks: parts of the file, in order.
        work: results of a chunk, one text for each member.
        writer: in the process that writes; closed on failure, finished by the caller.
        own: what this process found since the last call, plain data; not called if alone.
        absorb: adds what another process found; called in the process that writes.
        state: all that was found, in the process that writes.
        progress: called with the number of results written in all.
    """
    size = 1 if process.alone else _CHUNKS * process.world_size
    try:
        for several in in_batches(chunks, size):
            texts = [work(chunk) for chunk in process.share(several)]
            parts = process.to_first((texts, None if process.alone else own()))
            if writer is None or parts is None:
                continue
            for number in range(len(several)):
                turn, place = divmod(number, process.world_size)
                writer.write(parts[place][0][turn])
            for _, found in parts:
                if found is not None:
                    absorb(found)
            writer.save(state)
            progress(writer.n_done)
    except BaseException:
        if writer is not None:
            try:
                writer.save(state, force=True)
            finally:
                writer.close()
        raise
