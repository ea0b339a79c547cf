import dataclasses
import logging

import numpy as np
import pytest
import torch
from ase import Atoms
from data_cases import QUICKSTART, free_atom, water, write_xyz

from fpmace.data.dataset import make_loader, open_dataset
from fpmace.data.field_norms import average_field_feature_norms
from fpmace.data.options import DataOptions
from fpmace.data.statistics import DatasetStatistics, compute_statistics, find_atomic_energies
from fpmace.electrostatics.gto import GTOElectrostatics
from fpmace.electrostatics.options import ElectrostaticsOptions
from fpmace.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def quickstart():
    return open_dataset(QUICKSTART / "valid.xyz", 4.0)


def test_numbers_against_numpy(quickstart):
    energies = {1: -10.0, 8: -100.0, 11: -5.0, 17: -120.0}
    found = compute_statistics(quickstart, energies)
    configs = quickstart.configurations
    per_atom = [
        (c.properties["energy"] - sum(energies[z] for z in c.atomic_numbers.tolist())) / c.n_atoms
        for c in configs
    ]
    forces = np.concatenate([c.properties["forces"] for c in configs])
    np.testing.assert_allclose(found.mean, np.mean(per_atom), rtol=1e-12)
    np.testing.assert_allclose(found.std, np.std(per_atom), rtol=1e-9)
    np.testing.assert_allclose(found.rms, np.sqrt(np.mean(forces**2)), rtol=1e-12)
    levels = [float(c.properties["fermi_level"]) for c in configs]
    np.testing.assert_allclose(found.fermi_level_offset, np.mean(levels), rtol=1e-12)
    edges = sum(quickstart[i].n_edges for i in range(len(quickstart)))
    assert found.avg_num_neighbors == edges / sum(c.n_atoms for c in configs)
    numbers = np.concatenate([c.atomic_numbers for c in configs])
    multipoles = np.concatenate([c.properties["atomic_multipoles"] for c in configs])
    for number, scale in found.atom_density_scaling.items():
        expected = np.sqrt(np.mean(multipoles[numbers == number] ** 2))
        np.testing.assert_allclose(scale, expected, rtol=1e-12)


def test_absent_properties_do_not_enter(tmp_path):
    bare = Atoms("OHH", positions=water().positions)
    path = write_xyz(tmp_path / "a.xyz", [water(seed=1), bare, water(seed=2)])
    found = compute_statistics(open_dataset(path, 3.0), {"O": 0.0, "H": 0.0})
    labelled = compute_statistics(
        open_dataset(write_xyz(tmp_path / "b.xyz", [water(seed=1), water(seed=2)]), 3.0),
        {8: 0.0, 1: 0.0},
    )
    for name in ("mean", "rms", "fermi_level_offset"):
        assert getattr(found, name) == pytest.approx(getattr(labelled, name), rel=1e-12)
    assert found.atom_density_scaling == pytest.approx(labelled.atom_density_scaling)


def test_without_labels_the_scales_are_neutral(tmp_path):
    path = write_xyz(tmp_path / "a.xyz", [Atoms("H2", positions=[[0, 0, 0], [0, 0, 1]])])
    dataset = open_dataset(path, 3.0, DataOptions(check_keys=False))
    found = compute_statistics(dataset, {1: 0.0})
    assert (found.mean, found.std, found.rms) == (0.0, 1.0, 1.0)
    assert found.fermi_level_offset is None
    assert found.atom_density_scaling is None


def test_isolated_atom_energies(tmp_path):
    path = write_xyz(tmp_path / "a.xyz", [free_atom("H", -1.0), water(), free_atom("O", -3.0)])
    dataset = open_dataset(path, 3.0)
    assert len(dataset) == 1
    assert find_atomic_energies(dataset, "IsolatedAtom") == {1: -1.0, 8: -3.0}


def test_average_is_least_squares(tmp_path, caplog):
    exact = {1: -2.0, 8: -30.0}
    frames = []
    for formula in ("H2O", "H2O2", "OH", "H3O"):
        atoms = Atoms(formula)
        atoms.positions = np.arange(len(atoms))[:, None] * np.array([1.0, 0.2, 0.0])
        atoms.info["REF_energy"] = sum(exact[z] for z in atoms.numbers)
        frames.append(atoms)
    dataset = open_dataset(write_xyz(tmp_path / "a.xyz", frames), 3.0)
    found = find_atomic_energies(dataset, "average")
    np.testing.assert_allclose([found[1], found[8]], [-2.0, -30.0], rtol=1e-10)
    frames = [frames[0]] * 2
    dataset = open_dataset(write_xyz(tmp_path / "b.xyz", frames), 3.0)
    with caplog.at_level(logging.WARNING):
        found = find_atomic_energies(dataset, "average")
    assert "fix 1 of 2 atomic energies" in caplog.text
    assert 2 * found[1] + found[8] == pytest.approx(-34.0)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ("IsolatedAtom", DataError, ["IsolatedAtom", "H, O", "E0s: average"]),
        ({1: -1.0}, DataError, ["E0s", "O"]),
        ("avrage", ConfigError, ["avrage", "'average'"]),
        ({"Q": 1.0}, ConfigError, ["'Q'"]),
        ({1: "low"}, ConfigError, ["E0s.1", "'low'"]),
    ],
)
def test_atomic_energies_that_cannot_be_had(tmp_path, value, error, words):
    dataset = open_dataset(write_xyz(tmp_path / "a.xyz", [water()]), 3.0)
    with pytest.raises(error) as caught:
        find_atomic_energies(dataset, value)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_json_round_trip(quickstart, tmp_path):
    found = compute_statistics(quickstart, "average")
    found = found.with_norms([1.0, 2.0, 3.0, 4.0], GTOElectrostatics(ElectrostaticsOptions()))
    found.save(tmp_path / "statistics.json")
    assert DatasetStatistics.load(tmp_path / "statistics.json") == found
    assert found.electrostatics["feature_widths"] == [1.5, 3.0]
    (tmp_path / "bad.json").write_text('{"r_max": 1}')
    with pytest.raises(DataError, match=r"bad\.json: is not a statistics file"):
        DatasetStatistics.load(tmp_path / "bad.json")


@pytest.mark.parametrize("max_l", [0, 1])
def test_field_feature_norms_are_rms_features(quickstart, max_l):
    options = ElectrostaticsOptions(
        pbc_handling="realspace", feature_max_l=max_l, feature_widths=(1.0, 2.0, 3.0)
    )
    electrostatics = GTOElectrostatics(options)
    part = quickstart.subset(range(6))
    batch = next(iter(make_loader(part, 6)))
    plan = electrostatics.plan(batch.positions, batch.cell, batch.pbc, batch.batch, batch.ptr)
    features = plan.potential_features(batch.labels["atomic_multipoles"])
    features = features + electrostatics.external_features(
        batch.positions, batch.batch, batch.external_field, batch.fermi_level + 6.0
    )
    expected = []
    for order in range(max_l + 1):
        for width in range(3):
            start = width if order == 0 else 3 + 3 * width
            block = features[:, start : start + 2 * order + 1]
            expected.append(float(block.square().mean().sqrt()))
    found = average_field_feature_norms(make_loader(part, 2), electrostatics, -6.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_field_feature_norms_pass_over_unlabelled_graphs(quickstart):
    electrostatics = GTOElectrostatics(ElectrostaticsOptions(pbc_handling="realspace"))
    first, second = (next(iter(make_loader(quickstart.subset([i]), 1))) for i in (0, 1))
    blind = dataclasses.replace(
        second, weights={**second.weights, "fermi_level": torch.zeros(1, dtype=torch.float64)}
    )
    alone = average_field_feature_norms([first], electrostatics, -6.0)
    assert average_field_feature_norms([first, blind], electrostatics, -6.0) == alone
    with pytest.raises(DataError, match="field_feature_norms"):
        average_field_feature_norms([blind], electrostatics, -6.0)
