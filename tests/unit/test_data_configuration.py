import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from data_cases import water, write_xyz

from fpmace.data.atomic_data import atomic_data, batch_from_configurations
from fpmace.data.configuration import configuration_from_atoms
from fpmace.data.extxyz import read_configurations
from fpmace.data.keys import LABELS, WEIGHTED, KeyMapping
from fpmace.data.options import DataOptions


def test_values_and_absent_properties():
    atoms = water(seed=1)
    config = configuration_from_atoms(atoms, DataOptions())
    data = atomic_data(config, 3.0, DataOptions())
    assert float(data.labels["energy"]) == atoms.info["REF_energy"]
    assert torch.equal(data.labels["forces"], torch.from_numpy(atoms.arrays["REF_forces"]))
    assert data.weights["energy"] == 1.0
    assert torch.equal(data.weights["dipole"], torch.ones(3, dtype=torch.float64))
    for name in ("stress", "polarizability", "external_field"):
        assert data.weights[name] == 0.0
    assert data.weights["charges"] == 1.0
    assert torch.equal(data.labels["charges"], data.labels["atomic_multipoles"][:, 0])
    assert data.labels["stress"].shape == (3, 3)
    assert set(data.labels) == {*LABELS, "fermi_level"}
    assert set(data.weights) == set(WEIGHTED)


def test_weights_from_the_file():
    atoms = water(config_weight=2.0, config_forces_weight=0.25, config_type="rare")
    atoms.info["config_dipole_weight"] = np.array([0, 0, 1])
    options = DataOptions(config_type_weights={"rare": 3.0, "Default": 5.0})
    data = atomic_data(configuration_from_atoms(atoms, options), 3.0, options)
    assert data.weight == 6.0
    assert data.weights["forces"] == 0.25
    assert data.weights["dipole"].tolist() == [0.0, 0.0, 1.0]
    assert options.type_weight("other") == 5.0


def test_a_weight_for_an_absent_property_stays_zero():
    config = configuration_from_atoms(water(config_stress_weight=4.0), DataOptions())
    assert config.property_weight("stress") == 0.0


def test_keys_that_ase_moves_to_a_calculator(tmp_path):
    atoms = water()
    stress = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    forces = np.arange(9.0).reshape(3, 3)
    atoms.calc = SinglePointCalculator(
        atoms, energy=-3.0, forces=forces, stress=stress, dipole=np.array([1.0, 2.0, 3.0])
    )
    heads = {
        "h": {
            "info_keys": {"energy": "energy", "stress": "stress", "dipole": "dipole"},
            "arrays_keys": {"forces": "forces"},
        }
    }
    options = DataOptions(keys=KeyMapping.from_heads(heads))
    path = write_xyz(tmp_path / "calc.xyz", [atoms])
    assert read(path).calc is not None
    for config in (configuration_from_atoms(atoms, options), *read_configurations(path, options)):
        assert config.properties["energy"] == -3.0
        assert np.array_equal(config.properties["forces"], forces)
        assert config.properties["dipole"].tolist() == [1.0, 2.0, 3.0]
        expected = [[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]
        assert config.properties["stress"].tolist() == expected


@pytest.mark.parametrize(("max_l", "columns"), [(0, 1), (1, 4)])
def test_multipoles_are_cut_to_l_max(max_l, columns):
    atoms = water()
    atoms.arrays["REF_atomic_multipoles"] = np.arange(27.0).reshape(3, 9)
    config = configuration_from_atoms(atoms, DataOptions(multipoles_max_l=max_l))
    expected = atoms.arrays["REF_atomic_multipoles"][:, :columns]
    assert np.array_equal(config.properties["atomic_multipoles"], expected)


def test_charges_alone_serve_as_multipoles_of_order_zero():
    atoms = water()
    atoms.arrays["REF_atomic_multipoles"] = np.array([-0.8, 0.4, 0.4])
    config = configuration_from_atoms(atoms, DataOptions(multipoles_max_l=0))
    assert config.properties["atomic_multipoles"].shape == (3, 1)


def test_cluster_id_is_an_integer_label():
    atoms = water()
    atoms.arrays["cluster_id"] = np.array([0, 0, 1])
    config = configuration_from_atoms(atoms, DataOptions())
    data = atomic_data(config, 3.0, DataOptions(), with_cluster_id=True)
    assert data.labels["cluster_id"].tolist() == [0, 0, 1]
    assert data.labels["cluster_id"].dtype == torch.int64


def test_precision_does_not_follow_torch_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        configs = [configuration_from_atoms(water(seed=k), DataOptions()) for k in range(2)]
        batch = batch_from_configurations(configs, 3.0)
        single = batch_from_configurations(configs, 3.0, dtype=torch.float32)
    finally:
        torch.set_default_dtype(before)
    for name in ("positions", "cell", "unit_shifts", "total_charge", "weight"):
        assert getattr(batch, name).dtype == torch.float64
        assert getattr(single, name).dtype == torch.float32
    assert batch.labels["energy"].dtype == torch.float64
    assert batch.edge_index.dtype == torch.int64


def test_batch_shapes_and_offsets():
    configs = [configuration_from_atoms(water(3.0 * k, seed=k), DataOptions()) for k in range(3)]
    batch = batch_from_configurations(configs, 2.0)
    assert batch.ptr.tolist() == [0, 3, 6, 9]
    assert batch.batch.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert batch.labels["energy"].shape == (3,)
    assert batch.labels["dipole"].shape == (3, 3)
    assert batch.labels["atomic_multipoles"].shape == (9, 4)
    assert batch.weights["dipole"].shape == (3, 3)
    assert batch.edge_index.shape == (2, 18)
    sender, receiver = batch.edge_index
    assert torch.equal(batch.batch[sender], batch.batch[receiver])
    assert bool((receiver.diff() >= 0).all())
