"""What property tests draw: rotations, shifts and orders."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

_COMPONENT = st.floats(-1.0, 1.0, allow_subnormal=False)


def _rotation(quaternion: tuple[float, ...], improper: bool) -> np.ndarray:
    matrix: np.ndarray = Rotation.from_quat(quaternion).as_matrix()
    return -matrix if improper else matrix


def rotations() -> st.SearchStrategy[np.ndarray]:
    """Rotations, proper and improper, [3, 3]."""
    quaternions = st.tuples(*[_COMPONENT] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)
    return st.builds(_rotation, quaternions, st.booleans())


def turns() -> st.SearchStrategy[np.ndarray]:
    """What a slab allows: turns about z, with and without inversion, [3, 3]."""

    def turn(angle: float, improper: bool) -> np.ndarray:
        return _rotation((0.0, 0.0, np.sin(angle), np.cos(angle)), improper)

    return st.builds(turn, st.floats(0.0, 3.0), st.booleans())


def shifts(size: float = 12.0) -> st.SearchStrategy[np.ndarray]:
    """Translations, [3] Angstrom."""
    return st.tuples(*[st.floats(-size, size)] * 3).map(np.array)


def orders(n: int) -> st.SearchStrategy[np.ndarray]:
    """Permutations of ``n`` atoms."""
    return st.permutations(range(n)).map(np.array)
