"""What the terms of the loss count over a step, before all of it is predicted."""

from __future__ import annotations

from collections.abc import Mapping


class ExpectedCounts:
    """Counts of loss terms by name, learned from the steps that were done.

    A term counts structures or atoms, times a number of components. Which of the two shows as soon
    as two steps differ in size; where neither fits, or structures are left out, the expectation is
    wrong, which only costs time.
    """

    def __init__(self) -> None:
        self._components: dict[str, dict[str, int]] = {}

    def learn(self, counts: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        """Compare counts with the numbers of structures and of atoms behind them, by unit."""
        for name, count in counts.items():
            fits = {unit: count // size for unit, size in sizes.items() if count % size == 0}
            known = self._components.get(name, fits)
            self._components[name] = {u: n for u, n in fits.items() if known.get(u) == n}

    def of(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Counts of a step of this size; those of unknown terms are left out."""
        found = {}
        for name, components in self._components.items():
            for unit, number in components.items():
                found[name] = number * sizes[unit]
        return found
