"""Few combinations of options that hold every pair of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

Row = dict[str, object]


def every_pair(
    factors: Mapping[str, Sequence[object]], allowed: Callable[[Row], bool] = lambda row: True
) -> list[Row]:
    """Choose rows so that any two values of different factors meet in one of them.

    Greedy: each row is the combination that has most pairs not seen yet. Pairs that no allowed
    row has are left out.

    Args:
        factors: name -> values; the product of their numbers should stay below some 10^5.
        allowed: whether a row makes sense.
    """
    rows = [dict(zip(factors, values, strict=True)) for values in product(*factors.values())]
    indices = list(product(*(range(len(values)) for values in factors.values())))
    candidates = [
        (row, _pairs(index)) for row, index in zip(rows, indices, strict=True) if allowed(row)
    ]
    missing = set().union(*(pairs for _, pairs in candidates)) if candidates else set()
    chosen = []
    while missing:
        row, pairs = max(candidates, key=lambda item: len(item[1] & missing))
        chosen.append(row)
        missing -= pairs
    return chosen


def _pairs(index: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
    places = combinations(enumerate(index), 2)
    return {(first, i, second, j) for (first, i), (second, j) in places}
