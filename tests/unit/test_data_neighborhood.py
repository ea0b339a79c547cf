import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fpmace.data.neighborhood import edge_vectors, neighborhood

R_MAX = 3.1
TRICLINIC = np.array([[2.3, 0.1, 0.0], [-0.7, 2.1, 0.3], [0.2, 0.4, 2.6]])


def brute_force(positions, cell, pbc, r_max, reach=5):
    """Every pair and every image, by definition."""
    found = set()
    ranges = [range(-reach, reach + 1) if flag else (0,) for flag in pbc]
    for shift in itertools.product(*ranges):
        moved = positions + np.array(shift) @ cell
        for sender, receiver in itertools.product(range(len(positions)), repeat=2):
            if sender == receiver and not any(shift):
                continue
            if np.linalg.norm(moved[receiver] - positions[sender]) < r_max:
                found.add((receiver, sender, *shift))
    return sorted(found)


def as_list(edge_index, unit_shifts):
    sender, receiver = edge_index
    return [
        (int(r), int(s), *map(int, shift))
        for r, s, shift in zip(receiver, sender, unit_shifts, strict=True)
    ]


@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("scale", [1.0, 2.5])
@settings(max_examples=3)
@given(
    positions=arrays(float, (4, 3), elements=st.floats(-1.5, 4.0), unique=True),
    offset=st.sampled_from([0.0, -40.3, 17.0]),
)
def test_against_brute_force(pbc, scale, positions, offset):
    """Small and larger triclinic cells, atoms inside and far outside."""
    pbc, cell = np.array(pbc), TRICLINIC * scale
    positions = positions.copy()
    positions[2] += 2.0 * cell[0] - cell[1]
    if not pbc[0] or not pbc[1]:
        positions[2] = positions[1] + [0.4, 1.1, -0.6]
    positions += offset
    edges, shifts = neighborhood(positions, cell, pbc, R_MAX)
    assert as_list(edges, shifts) == brute_force(
        positions, cell, pbc, R_MAX, 9 if scale == 1 else 5
    )
    lengths = np.linalg.norm(edge_vectors(positions, cell, edges, shifts), axis=1)
    assert np.all(lengths < R_MAX)


@pytest.mark.parametrize("cell", [np.zeros((3, 3)), np.eye(3) * 1e-3, np.eye(3) * 30.0])
def test_a_molecule_ignores_its_cell(cell):
    positions = np.random.default_rng(0).normal(scale=2.0, size=(6, 3)) - 55.0
    edges, shifts = neighborhood(positions, cell, np.zeros(3, dtype=bool), R_MAX)
    assert as_list(edges, shifts) == brute_force(positions, cell, [False] * 3, R_MAX)
    assert not shifts.any()


def test_slab_without_a_vector_along_the_open_direction():
    cell = TRICLINIC.copy()
    cell[2] = 0.0
    positions = np.random.default_rng(1).uniform(-3, 3, size=(3, 3))
    pbc = np.array([True, True, False])
    edges, shifts = neighborhood(positions, cell, pbc, R_MAX)
    assert as_list(edges, shifts) == brute_force(positions, cell, pbc, R_MAX, 7)


def test_one_atom_sees_its_images_and_nothing_without_them():
    position, cell = np.zeros((1, 3)), np.eye(3) * 2.0
    edges, _ = neighborhood(position, cell, np.ones(3, dtype=bool), 2.5)
    assert edges.shape == (2, 6)
    edges, shifts = neighborhood(position, cell, np.zeros(3, dtype=bool), 2.5)
    assert edges.shape == (2, 0)
    assert shifts.shape == (0, 3)


def test_atoms_at_one_place_are_neighbours():
    positions = np.zeros((2, 3))
    edges, _ = neighborhood(positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), 2.0)
    assert edges.tolist() == [[1, 0], [0, 1]]


def test_edges_of_a_long_chain_without_a_cell():
    positions = np.zeros((50, 3))
    positions[:, 0] = np.arange(50) * 20.0
    edges, _ = neighborhood(positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), 20.5)
    assert edges.shape[1] == 98
