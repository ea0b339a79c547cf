"""Which of several processes of a run this one is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """One of ``world_size`` processes that train together.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process owns what is printed and written."""
        return self.rank == 0


ALONE = Process()
