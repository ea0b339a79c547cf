"""Data that carries only some of the labels: no Fermi levels, charges without dipoles."""

import numpy as np
import pytest
import torch
from ase import Atoms
from data_cases import write_xyz
from small_models import SMALL_FIXED_POINT

from fpmace.config.load import resolve
from fpmace.data.dataset import make_loader, open_dataset
from fpmace.data.options import DataOptions
from fpmace.data.statistics import compute_statistics
from fpmace.errors import TrainingError
from fpmace.metrics.errors import measurable
from fpmace.models.io import load_model
from fpmace.training.run import run_training

SCF = {"num_scf_steps": 4, "mixing_parameter": 0.3, "initial_fermi_level": "from_data"}


def waters(*labels: str, n: int = 5) -> list[Atoms]:
    """Water molecules with energies, forces and the labels named."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(n):
        positions = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        atoms = Atoms("OHH", positions + 0.05 * rng.normal(size=(3, 3)))
        atoms.info.update(REF_energy=-10.0 + rng.normal(), total_charge=0.0)
        atoms.arrays["REF_forces"] = rng.normal(size=(3, 3))
        charges = np.array([-0.6, 0.3, 0.3]) + 0.02 * rng.normal(size=3)
        if "multipoles" in labels:
            dipoles = 0.05 * rng.normal(size=(3, 3))
            atoms.arrays["REF_atomic_multipoles"] = np.column_stack([charges, dipoles])
        if "charges" in labels:
            atoms.arrays["REF_charges"] = charges
        if "levels" in labels:
            atoms.info["REF_fermi_level"] = -4.0
        found.append(atoms)
    return found


def train(folder, frames, loss, mode=None, **options):
    """One epoch of a tiny model."""
    stage = {"start": 0, "end": 0, "loss": loss, "lr": 0.01}
    stage["fixed_point_training_options"] = mode or {"mode": "direct"}
    values = {
        **{name: value for name, value in SMALL_FIXED_POINT.items() if name != "num_bessel"},
        "train_file": str(write_xyz(folder / "train.xyz", frames)),
        "work_dir": str(folder),
        "E0s": "average",
        "valid_fraction": 0.4,
        "batch_size": 3,
        "field_feature_norms": "average",
        "train_schedule": {0: stage},
        **options,
    }
    return run_training(resolve(values))


@pytest.mark.parametrize("mode", ["direct", "unroll_scf"])
def test_data_without_fermi_levels_trains(tmp_path, mode):
    options = {"mode": mode, **({} if mode == "direct" else {"scf": SCF})}
    result = train(tmp_path, waters("multipoles"), {"atomic_multipoles": 1.0}, options)
    (log,) = tmp_path.glob("*.log")
    assert "no configuration has info['REF_fermi_level']; 0 eV is taken" in log.read_text()
    assert "charges" in result.evaluations["valid"].accumulator.statistics()
    model = load_model(result.model_path)
    assert model.trained_range.values["total charge"] == [0.0, 0.0]
    norms = model.field_feature_norms
    assert bool((norms > 1e-3).all())


@pytest.mark.parametrize("max_l", [0, 1])
def test_charges_alone_are_enough(tmp_path, max_l):
    options = {"atomic_multipoles_max_l": max_l, "atom_density_scaling": "average"}
    result = train(
        tmp_path, waters("charges"), {"charges": 100.0, "energy_per_atom": 1.0}, **options
    )
    errors = result.evaluations["valid"].accumulator.statistics()
    assert errors["charges"].count == 6
    assert "atomic_multipoles" not in errors
    scales = {1: 0.3, 8: 0.6}
    found = compute_statistics(open_dataset(tmp_path / "train.xyz", 3.0), "average")
    assert found.atom_density_scaling == pytest.approx(scales, abs=0.05)


def test_charges_leave_the_dipoles_free_and_follow_multipoles(tmp_path):
    def batch(*labels):
        path = write_xyz(tmp_path / "a.xyz", waters(*labels, n=1))
        dataset = open_dataset(path, 3.0, DataOptions())
        return next(iter(make_loader(dataset, 1))), dataset.info.properties

    given, counts = batch("charges")
    assert given.weights["charges"].item() == 1.0
    assert given.weights["atomic_multipoles"].item() == 0.0
    outputs = frozenset({"density"})
    assert [item.name for item in measurable(counts, outputs)] == ["charges", "total_charge"]
    implied, counts = batch("multipoles")
    assert implied.weights["charges"].item() == 1.0
    torch.testing.assert_close(
        implied.labels["charges"], implied.labels["atomic_multipoles"][:, 0]
    )
    torch.testing.assert_close(given.labels["atomic_multipoles"][:, 0], given.labels["charges"])
    assert float(given.labels["atomic_multipoles"][:, 1:].abs().max()) == 0.0


def test_direct_needs_charges_or_multipoles(tmp_path):
    message = r"needs 'charges' .*; 0 of 3 .*REF_charges.*REF_atomic_multipoles.*which_labels.md"
    with pytest.raises(TrainingError, match=message):
        train(tmp_path, waters("levels"), {"forces": 1.0}, field_feature_norms="None")


@pytest.mark.parametrize("labelled", [True, False])
def test_the_log_says_what_esps_compares_with(tmp_path, labelled):
    frames = waters("charges") if labelled else waters("multipoles")
    for atoms in frames if labelled else ():
        atoms.arrays["REF_electrostatic_potentials"] = np.array([8.0, -2.0, -2.0])
    mode = {"mode": "implicit", "scf": SCF}
    train(tmp_path, frames, {"esps": 1.0}, mode)
    (log,) = tmp_path.glob("*.log")
    what = "labelled potentials (3 structures)" if labelled else "the potential of the reference"
    assert f"train_schedule.0.loss.esps: compares with {what}" in log.read_text()
