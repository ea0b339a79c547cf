"""Files with a flipped bit or a lost block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def damages(content: bytes, n: int) -> Iterator[bytes]:
    """Copies with one flipped bit, or a block of zeros."""
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(content), n):
        changed = bytearray(content)
        changed[place] ^= 1 << int(generator.integers(8))
        yield bytes(changed)
    for start in generator.integers(0, len(content), n):
        yield content[:start] + bytes(min(512, len(content) - start)) + content[start + 512 :]
