"""Small structures and files for the tests of the data layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import write

from fpmace.data.batch import Batch

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "data" / "quickstart"


def water(shift: float = 0.0, *, seed: int = 0, **info: Any) -> Atoms:
    """A labelled water molecule without a cell."""
    random = np.random.default_rng(seed)
    atoms = Atoms("OHH", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    atoms.positions += shift + random.normal(scale=0.01, size=(3, 3))
    atoms.arrays["REF_forces"] = random.normal(size=(3, 3))
    atoms.arrays["REF_atomic_multipoles"] = random.normal(size=(3, 4))
    atoms.info.update(
        REF_energy=-14.0 + seed,
        REF_dipole=random.normal(size=3),
        config_dipole_weight=np.ones(3, dtype=int),
        total_charge=0.0,
        REF_fermi_level=-5.0 + 0.1 * seed,
        config_type="water",
    )
    atoms.info.update(info)
    return atoms


def free_atom(symbol: str, energy: float) -> Atoms:
    """A free atom that gives the atomic energy."""
    return Atoms(
        symbol,
        positions=[[0, 0, 0]],
        info={
            "REF_energy": energy,
            "config_type": "IsolatedAtom",
            "total_charge": 0.0,
        },
    )


def write_xyz(path: Path, frames: list[Atoms]) -> Path:
    """Write extended XYZ."""
    write(path, frames, format="extxyz")
    return path


def assert_same_batches(first: list[Batch], second: list[Batch]) -> None:
    """Every tensor equal, bit for bit, with the same dtype."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for name in Batch.__slots__:
            left, right = getattr(one, name), getattr(other, name)
            if not isinstance(left, dict):
                left, right = {name: left}, {name: right}
            assert left.keys() == right.keys()
            for key, value in left.items():
                assert value.dtype == right[key].dtype, key
                assert torch.equal(value, right[key]), key
