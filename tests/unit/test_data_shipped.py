"""The shipped labels of the response, against the other labels of the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.io import read

DATA = Path(__file__).parents[2] / "data"


def _labelled(path: Path) -> list[tuple[int, np.ndarray]]:
    frames = read(path, ":")
    return [
        (number, np.reshape(atoms.info["REF_polarizability"], (3, 3)))
        for number, atoms in enumerate(frames)
        if "REF_polarizability" in atoms.info
    ]


def test_polarizabilities_agree_with_the_pairs_in_sign_and_size() -> None:
    pairs: dict[int, list] = {}
    for atoms in read(DATA / "water_ions" / "test.xyz", ":"):
        if "pair_id" in atoms.info:
            pairs.setdefault(atoms.info["pair_id"], []).append(atoms)
    compared = 0
    for pair in pairs.values():
        zero, one = sorted(pair, key=lambda a: np.linalg.norm(a.info["external_field"]))
        if "REF_polarizability" not in zero.info:
            continue
        field = one.info["external_field"]
        alpha = np.reshape(zero.info["REF_polarizability"], (3, 3))
        change = one.info["REF_dipole"] - zero.info["REF_dipole"]
        bend = one.info["REF_energy"] - zero.info["REF_energy"] - zero.info["REF_dipole"] @ field
        expected = field @ alpha @ field
        assert -change @ field == pytest.approx(expected, rel=0.05)
        assert -2.0 * bend == pytest.approx(expected, rel=0.05, abs=2e-7)
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("name", ["quickstart", "nacl_clusters", "carbon_chains", "ag3"])
def test_every_part_has_symmetric_polarizabilities_without_a_wrong_sign(name: str) -> None:
    for part in ("valid", "test"):
        labels = _labelled(DATA / name / f"{part}.xyz")
        assert labels
        for _, alpha in labels:
            assert np.array_equal(alpha, alpha.T)
            assert np.linalg.eigvalsh(alpha)[0] > -1e-4


@pytest.mark.parametrize("name", ["carbon_chains", "ag3"])
def test_parts_of_a_split_share_no_trajectory(name: str) -> None:
    parts = [
        {atoms.info["traj"] for atoms in read(DATA / name / f"{part}.xyz", ":") if len(atoms) > 1}
        for part in ("train", "valid", "test")
    ]
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts))


@pytest.mark.parametrize("name", ["water_ions", "nacl_clusters"])
def test_bare_ions_are_there_to_learn_from(name: str) -> None:
    single = [a for a in read(DATA / name / "train.xyz", ":") if len(a) == 1]
    charges = {str(a.symbols): a.info["total_charge"] for a in single if a.info["total_charge"]}
    assert charges == {"Na": 1.0, "Cl": -1.0}
    assert {str(a.symbols) for a in single if not a.info["total_charge"]} >= {"Na", "Cl"}
