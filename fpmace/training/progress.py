"""A progress bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress_bar(items: Iterable[T], title: str) -> Iterator[T]:
    """Iterate over ``items``; shows a bar with the time left if standard error is a terminal."""
    total = len(items) if isinstance(items, Sized) else None
    visible = sys.stderr.isatty()
    return iter(tqdm(items, desc=title, total=total, leave=False, disable=not visible))
