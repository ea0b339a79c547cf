"""From configuration and data to model, stages and early complaints."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

from fpmace import registry
from fpmace.config.load import resolve
from fpmace.data.dataset import make_loader
from fpmace.differentiation.implicit import NoDifferentiation
from fpmace.errors import ConfigError, DataError
from fpmace.observables.predict import predict
from fpmace.scf.options import ScfOptions
from fpmace.training.data import open_datasets, schedule_problems, training_statistics
from fpmace.training.memory import estimate_step
from fpmace.training.run import describe, history
from fpmace.training.setup import (
    available_outputs,
    build_model,
    build_stages,
    evaluation_mode,
    model_config,
    trainer_options,
    with_field_norms,
)
from fpmace.training.unconverged import usable_graphs

CPU = torch.device("cpu")
TINY = {
    "r_max": 2.5,
    "hidden_irreps": "2x0e+2x1o",
    "max_ell": 1,
    "correlation": 1,
    "num_radial_basis": 3,
    "radial_MLP": [4],
    "MLP_irreps": "2x0e",
    "valid_fraction": 0.4,
    "batch_size": 2,
}
SCF = {"num_scf_steps": 3, "mixing_parameter": 0.3, "initial_density": "from_data"}


def structures(n: int = 5, *, fermi: bool = True) -> list[Atoms]:
    rng = np.random.default_rng(2)
    found = []
    for _ in range(n):
        positions = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        atoms = Atoms("OHH", positions + 0.05 * rng.normal(size=(3, 3)))
        atoms.info.update(REF_energy=-10.0 + rng.normal(), total_charge=0.0)
        if fermi:
            atoms.info["REF_fermi_level"] = -4.0
        atoms.arrays["REF_forces"] = rng.normal(size=(3, 3))
        multipoles = 0.1 * rng.normal(size=(3, 4))
        atoms.arrays["REF_atomic_multipoles"] = multipoles
        found.append(atoms)
    return found


@pytest.fixture
def configure(tmp_path):
    """Write data, return a function from options to a resolved configuration."""

    def make(atoms: list[Atoms] | None = None, **options):
        path = tmp_path / "train.xyz"
        write(path, structures() if atoms is None else atoms, format="extxyz")
        values = {**TINY, "train_file": str(path), "work_dir": str(tmp_path), **options}
        return resolve(values)

    return make


def prepared(resolved):
    datasets = open_datasets(resolved.config)
    statistics = training_statistics(resolved.config, resolved.origins, datasets.train)
    return datasets, with_field_norms(resolved.config, statistics, datasets.train)


@pytest.mark.parametrize("name", ["MACE", "ScaleShiftMACE", "FixedPoint"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_models_build_from_configuration_and_data(configure, name, dtype):
    resolved = configure(model=name, default_dtype=dtype)
    datasets, statistics = prepared(resolved)
    model = build_model(resolved.config, statistics, device=CPU)
    floating = {item.dtype for item in model.parameters()}
    assert floating == {getattr(torch, dtype)}
    assert model.config["atomic_numbers"] == [1, 8]
    assert model.config["avg_num_neighbors"] == statistics.avg_num_neighbors == 2.0
    rebuilt = registry.build("model", model.config)
    assert rebuilt.config == model.config
    stage = build_stages(resolved.config)[0]
    batch = next(iter(make_loader(datasets.train, 2, dtype=getattr(torch, dtype))))
    estimate = estimate_step(model, batch, stage, predict=predict, device=CPU)
    assert estimate.graph > 0
    assert "MiB" in str(estimate)
    assert "trainable parameters" in describe(model, statistics)


def test_every_parameter_of_the_fixed_point_model_has_a_named_group(configure):
    resolved = configure()
    model = build_model(resolved.config, prepared(resolved)[1], device=CPU)
    groups = {group.name for group in model.parameter_groups()}
    assert groups == {
        "embedding",
        "interactions",
        "products",
        "readouts",
        "field_block",
        "local_charges",
        "local_electron_energy",
    }


def test_scales_are_given_averaged_or_left_out(configure):
    averaged = configure(atom_density_scaling="average", use_linear_local_charges=True)
    _, statistics = prepared(averaged)
    config = model_config(averaged.config, statistics)
    assert config["atom_density_scaling"] == pytest.approx(
        [statistics.atom_density_scaling[1], statistics.atom_density_scaling[8]]
    )
    assert len(config["field_feature_norms"]) == 4
    assert config["fermi_level_offset"] == pytest.approx(-4.0)
    given = configure(
        atom_density_scaling={1: 0.5, 8: 2.0},
        field_feature_norms="None",
        fermi_level_offset=1.5,
    )
    config = model_config(given.config, statistics)
    assert config["atom_density_scaling"] == [0.5, 2.0]
    assert config["field_feature_norms"] is None
    assert config["fermi_level_offset"] == 1.5
    missing = configure(atom_density_scaling={1: 0.5})
    with pytest.raises(ConfigError, match=r"atom_density_scaling: has no scale for O \(8\)"):
        model_config(missing.config, statistics)
    without = dataclasses.replace(statistics, atom_density_scaling=None)
    with pytest.raises(ConfigError, match="average needs reference atomic_multipoles"):
        model_config(averaged.config, without)


def test_norms_of_the_statistics_are_kept_if_they_fit(configure):
    resolved = configure()
    datasets, statistics = prepared(resolved)
    marked = dataclasses.replace(statistics, field_feature_norms=(1.0, 2.0, 3.0, 4.0))
    assert with_field_norms(resolved.config, marked, datasets.train) is marked
    wider = configure(atomic_multipoles_smearing_width=2.0)
    again = with_field_norms(wider.config, marked, datasets.train)
    assert again.field_feature_norms != marked.field_feature_norms


def test_statistics_beside_preprocessed_data_are_checked(configure, tmp_path):
    resolved = configure()
    datasets, statistics = prepared(resolved)
    path = tmp_path / "statistics.json"
    changed = dataclasses.replace(statistics, atomic_energies={1: -1.0, 8: -2.0})
    changed.save(path)
    named = configure(statistics_file=str(path))
    found = training_statistics(named.config, named.origins, datasets.train)
    assert found.atomic_energies == {1: -1.0, 8: -2.0}
    given = configure(statistics_file=str(path), E0s={1: -3.0, 8: -4.0})
    found = training_statistics(given.config, given.origins, datasets.train)
    assert found.atomic_energies == {1: -3.0, 8: -4.0}
    other = configure(statistics_file=str(path), r_max=2.0)
    with pytest.raises(DataError, match=r"was made for r_max 2\.5, but r_max is 2\.0"):
        training_statistics(other.config, other.origins, datasets.train)
    dataclasses.replace(statistics, atomic_numbers=(1, 6)).save(path)
    with pytest.raises(DataError, match="holds elements"):
        training_statistics(named.config, named.origins, datasets.train)


def test_schedule_that_the_data_cannot_serve_is_listed(configure):
    resolved = configure(
        structures(fermi=False),
        field_feature_norms="None",
        train_schedule={
            0: {
                "name": "unroll",
                "start": 0,
                "end": 1,
                "lr": 0.01,
                "loss": {"dipole": 1.0, "forces": 1.0},
                "fixed_point_training_options": {
                    "mode": "unroll_scf",
                    "scf": {
                        **SCF,
                        "initial_fermi_level": "from_data",
                        "constant_charge": False,
                    },
                },
            }
        },
    )
    stages = build_stages(resolved.config)
    datasets = open_datasets(resolved.config)
    problems = schedule_problems(stages, datasets, available_outputs(resolved.config))
    assert len(problems) == 3
    assert problems[0].startswith("train_schedule.0.loss.dipole: needs label 'dipole'; 0 of 3")
    assert "needs 'fermi_level' in every configuration; 0 of 3 train" in problems[1]
    assert "info['REF_fermi_level']" in problems[1]
    assert "0 of 2 valid" in problems[2]


def test_a_response_in_the_loss_needs_a_mode_that_solves(configure):
    atoms = structures()
    for item in atoms:
        item.info["REF_polarizability"] = np.eye(3)
        item.arrays["REF_born_charges"] = np.zeros((3, 9))
    loss = {"polarizability": 1.0, "born_charges": 1.0, "forces": 1.0}

    def problems(**mode):
        stage = {
            "name": "a",
            "start": 0,
            "end": 1,
            "lr": 0.01,
            "loss": loss,
            "fixed_point_training_options": mode,
        }
        resolved = configure(atoms, field_feature_norms="None", train_schedule={0: stage})
        found = schedule_problems(
            build_stages(resolved.config),
            open_datasets(resolved.config),
            available_outputs(resolved.config),
        )
        return [text for text in found if "answers" in text]

    direct = problems(mode="direct")
    assert len(direct) == 2
    assert direct[0].startswith("train_schedule.0.loss.polarizability: needs how")
    assert "use implicit, linearize_solve or unroll_scf" in direct[1]
    assert problems(mode="implicit", scf=SCF) == []


def test_a_loss_on_a_fermi_level_that_is_held_is_refused(configure):
    def problems(**mode):
        stage = {"name": "a", "start": 0, "end": 1, "loss": {"fermi_level_per_atom": 1.0}}
        stage["fixed_point_training_options"] = mode
        resolved = configure(field_feature_norms="None", train_schedule={0: stage})
        return schedule_problems(
            build_stages(resolved.config),
            open_datasets(resolved.config),
            available_outputs(resolved.config),
        )

    (direct,) = problems(mode="direct")
    assert direct.startswith("train_schedule.0.loss.fermi_level_per_atom: ")
    assert "holds the Fermi level" in direct
    held = {**SCF, "constant_charge": False, "initial_fermi_level": "from_data"}
    assert problems(mode="unroll_scf", scf=held) == [direct]
    assert problems(mode="unroll_scf", scf=SCF) == []


def test_a_mode_names_how_derivatives_are_attached(configure):
    def mode(**options):
        stage = {"name": "a", "start": 0, "end": 1, "lr": 0.01, "loss": {"forces": 1.0}}
        stage["fixed_point_training_options"] = {"scf": SCF, **options}
        return build_stages(configure(train_schedule={0: stage}).config)[0].mode

    for name in ("implicit", "scf"):
        given = {"type": "implicit", "max_linear_iterations": 7}
        assert mode(mode=name, differentiation=given).differentiation.max_linear_iterations == 7
        assert isinstance(
            mode(mode=name, differentiation="none").differentiation, NoDifferentiation
        )
    with pytest.raises(ConfigError, match=r"no differentiation named 'adjoint'.*known: implicit"):
        mode(mode="implicit", differentiation="adjoint")


def test_outputs_of_a_model_without_density(configure):
    resolved = configure(model="MACE", loss={"dipole": 1.0})
    stages = build_stages(resolved.config)
    datasets = open_datasets(resolved.config)
    problems = schedule_problems(stages, datasets, available_outputs(resolved.config))
    assert any("needs the prediction 'dipole'" in line for line in problems)


def test_structures_that_did_not_converge_are_skipped_where_asked(configure):
    resolved = configure()
    datasets, statistics = prepared(resolved)
    model = build_model(resolved.config, statistics, device=CPU)
    batch = next(iter(make_loader(datasets.train, 2)))
    options = {"num_scf_steps": 2, "mixing_parameter": 0.1, "solver": "linear"}
    wild = {"max_density_change": 1e-9}
    for mode, policy, kept, more in (
        ("implicit", "skip", [False, False], {}),
        ("implicit", "use", None, {}),
        ("unroll_scf", "skip", [True, True], {}),
        ("unroll_scf", "skip", [False, False], wild),
        ("unroll_scf", "use", None, wild),
    ):
        scf = ScfOptions(on_failure="ignore", on_unconverged=policy, **options, **more)
        built = registry.build("training_mode", mode, scf=scf)
        found = predict(model, batch, mode=built, outputs={"energy"})
        assert not found.scf.converged.any()
        usable = usable_graphs(found, built)
        assert (None if usable is None else usable.tolist()) == kept
    assert usable_graphs(found, None) is None


def test_schedulefree_averages_by_itself(configure):
    assert trainer_options(configure().config, CPU).ema_decay == 0.99
    assert trainer_options(configure(ema=False).config, CPU).ema_decay is None
    assert trainer_options(configure(optimizer="schedulefree").config, CPU).ema_decay is None


def test_evaluations_are_self_consistent(configure):
    mode = evaluation_mode(configure(scf_options={"num_scf_steps": 7}).config)
    assert mode.scf.num_scf_steps == 7
    assert evaluation_mode(configure(model="MACE").config) is None
    validated = build_stages(configure(valid_mode="scf").config)[0]
    assert validated.mode.scf is None
    assert validated.valid_mode.scf is not None


def test_history_sums_up_the_stages():
    records = [
        {"epoch": 0, "stage": 0, "stage_name": "a", "valid": {"loss": 2.0}},
        {"epoch": 1, "stage": 0, "stage_name": "a", "valid": {"loss": 1.0}},
        {"epoch": 2, "stage": 0, "stage_name": "a", "valid": None},
        {"epoch": 3, "stage": 1, "stage_name": "b", "valid": {"loss": None}},
    ]
    first, second = history(records)
    assert (first["best_epoch"], first["best_loss"], first["last_epoch"]) == (1, 1.0, 2)
    assert second["best_loss"] is None
