"""Batches by a budget of atoms, edges or memory, in place of a number of structures."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from fpmace.errors import ConfigError, suggestion

logger = logging.getLogger(__name__)

T = TypeVar("T")
UNITS = ("atoms", "edges", "memory")


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


@dataclass(frozen=True)
class BatchBudget:
    """The most that a batch may hold, and what a structure counts.

    Attributes:
        unit: ``atoms``, ``edges``, or ``memory`` (MiB kept for the backward pass).
        most: sum over a batch; a structure that counts more is a batch of its own.
        per_atom, per_edge: what an atom and an edge count.
    """

    unit: str
    most: float
    per_atom: float
    per_edge: float

    def cost(self, n_atoms: float, n_edges: float) -> float:
        """What a structure counts."""
        return self.per_atom * n_atoms + self.per_edge * n_edges

    def costs(self, sizes: Iterable[tuple[int, int]], name: str) -> list[float]:
        """What each structure of a data set counts; larger ones than a batch are reported."""
        found = [self.cost(*size) for size in sizes]
        large = sum(cost > self.most for cost in found)
        if large:
            logger.warning(
                "%s: %d of %d structures are larger than batch_budget (up to %.3g times) and are "
                "batches of their own",
                name,
                large,
                len(found),
                max(found) / self.most,
            )
        return found

    def split(self, items: Iterable[T], costs: Iterable[float]) -> Iterator[list[T]]:
        """Consecutive items, as many as fit."""
        batch: list[T] = []
        total = 0.0
        for item, cost in zip(items, costs, strict=True):
            if batch and total + cost > self.most:
                yield batch
                batch, total = [], 0.0
            batch.append(item)
            total += cost
        if batch:
            yield batch


def check_budget(given: Mapping[str, float], units: Sequence[str] = UNITS) -> tuple[str, float]:
    """Unit and size of a budget such as ``{edges: 20000}``.

    Raises:
        ConfigError: naming the units.
    """
    if not isinstance(given, Mapping) or len(given) != 1:
        raise ConfigError(
            f"expects one of {', '.join(f'{{{unit}: NUMBER}}' for unit in units)}, got {given!r}",
            where="batch_budget",
        )
    ((unit, most),) = given.items()
    if unit not in units:
        raise ConfigError(
            f"'{unit}' is no unit{suggestion(str(unit), units)} (allowed: {', '.join(units)})",
            where="batch_budget",
        )
    if isinstance(most, bool) or not isinstance(most, int | float) or not 0 < most < math.inf:
        raise ConfigError(f"expects a number above 0, got {most!r}", where=f"batch_budget.{unit}")
    return unit, float(most)


def counted_budget(given: Mapping[str, float]) -> BatchBudget:
    """A budget of atoms or edges.

    Raises:
        ConfigError: it is none.
    """
    unit, most = check_budget(given, UNITS[:2])
    return BatchBudget(unit, most, float(unit == "atoms"), float(unit == "edges"))
