"""One of several processes of a run, and what they say to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from fpmace.distributed.voice import PeerError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Process:
    """One of ``world_size`` processes that work together; alone, nothing is sent.

    All methods are collective: every process calls them in the same order.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        local_rank: number of this process on its machine.
        restarts: how often the processes were started again after a failure.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def writes(self) -> bool:
        """Whether this process owns what is printed and written."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this process, where all of them share what they all know."""
        return items[self.rank :: self.world_size]

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over the processes, the same bits on each; changes ``values``."""
        if not self.alone:
            with _peers():
                torch.distributed.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """What every process gives (plain data), by rank."""
        if self.alone:
            return [value]
        found: list[T] = [value] * self.world_size
        with _peers():
            torch.distributed.all_gather_object(found, value)
        return found

    def to_first(self, value: T) -> list[T] | None:
        """What every process gives, by rank, in the process that writes; None elsewhere."""
        if self.alone:
            return [value]
        found = [value] * self.world_size if self.writes else None
        with _peers():
            torch.distributed.gather_object(value, found)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the process that writes."""
        if self.alone:
            return make()
        found: list[T | None] = [make() if self.writes else None]
        with _peers():
            torch.distributed.broadcast_object_list(found)
        return found[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Return when every process has come here."""
        self.gather(None)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over the processes, in one message.

        A parameter without a gradient in every process has none afterwards.
        """
        if self.alone:
            return
        present = torch.zeros(len(parameters)).to(parameters[0])
        parts = []
        for number, item in enumerate(parameters):
            if item.grad is not None:
                present[number] = 1.0
            parts.append((torch.zeros_like(item) if item.grad is None else item.grad).reshape(-1))
        flat = self.sum(torch.cat([*parts, present]))
        *sums, counts = flat.split([*map(len, parts), len(parameters)])
        for item, value, count in zip(parameters, sums, counts.tolist(), strict=True):
            item.grad = value.view_as(item).to(item.dtype) if count > 0 else None


ALONE = Process()


@contextmanager
def _peers() -> Iterator[None]:
    """Failures of the communication are those of another process."""
    try:
        yield
    except RuntimeError as error:
        raise PeerError(
            f"lost contact with another process ({str(error).splitlines()[0][:200]})"
        ) from error
