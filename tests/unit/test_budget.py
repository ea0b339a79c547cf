"""Batches by a budget of atoms, edges or memory."""

import itertools

import pytest
import rank_cases
from ase.io import read
from calculator_cases import affine_model, vibration, water_row
from data_cases import water, write_xyz
from hypothesis import given
from hypothesis import strategies as st

from fpmace.calculators import FixedPointSCF
from fpmace.cli.evaluate import main
from fpmace.config.load import load_config
from fpmace.data.atomic_data import collate
from fpmace.data.budget import BatchBudget, check_budget, counted_budget
from fpmace.data.dataset import make_loader, open_dataset
from fpmace.errors import ConfigError
from fpmace.models.io import save_model
from fpmace.observables.predict import predict
from fpmace.training import run as training
from fpmace.training.memory import estimate_step


@given(st.lists(st.integers(1, 12)), st.integers(1, 20))
def test_consecutive_items_fill_a_budget(costs, most):
    batches = list(BatchBudget("atoms", most, 1.0, 0.0).split(range(len(costs)), costs))
    assert [i for batch in batches for i in batch] == list(range(len(costs)))
    for batch in batches:
        assert sum(costs[i] for i in batch) <= most or len(batch) == 1
    for one, after in itertools.pairwise(batches):
        assert sum(costs[i] for i in one) + costs[after[0]] > most


@pytest.mark.parametrize(
    ("given_budget", "message"),
    [
        ({}, r"batch_budget: expects one of \{atoms: NUMBER\}, \{edges: NUMBER\}, \{memory"),
        ({"atoms": 3, "edges": 4}, "batch_budget: expects one of"),
        ({"edge": 3}, "'edge' is no unit; did you mean 'edges'"),
        ({"memory": 0}, "batch_budget.memory: expects a number above 0, got 0"),
    ],
)
def test_what_is_no_budget_is_refused(given_budget, message):
    with pytest.raises(ConfigError, match=message):
        check_budget(given_budget)


def test_loaders_keep_to_a_budget_and_are_reproducible(tmp_path):
    frames = [water(seed=k)[: 3 - k % 2] for k in range(12)]
    for atoms in frames:
        atoms.info = {"total_charge": 0.0}
    dataset = open_dataset(write_xyz(tmp_path / "a.xyz", frames), 3.0)
    for unit, place in (("atoms", 0), ("edges", 1)):
        sizes = [size[place] for size in dataset.sizes()]
        assert len(set(sizes)) > 1
        budget = counted_budget({unit: 2 * max(sizes)})
        orders = []
        for _ in range(2):
            loader = make_loader(dataset, 1, shuffle=True, seed=4, budget=budget)
            loader.set_epoch(3)
            orders.append([batch.index.tolist() for batch in loader])
        assert orders[0] == orders[1]
        assert sorted(i for batch in orders[0] for i in batch) == list(range(12))
        assert max(sum(sizes[i] for i in batch) for batch in orders[0]) <= budget.most
        assert len(orders[0]) < 12


def test_results_do_not_depend_on_the_budget(tmp_path):
    structures = [*vibration(water_row(1), 3), *vibration(water_row(2), 3)]
    for atoms in structures:
        atoms.info["total_charge"] = 0.0
    calc = FixedPointSCF(affine_model())
    plain = calc.evaluate(structures)
    budgeted = calc.evaluate(structures, batch_budget={"atoms": 7})
    for one, other in zip(plain, budgeted, strict=True):
        assert one["energy"] == pytest.approx(other["energy"], rel=1e-12)
    with pytest.raises(ConfigError, match="'memory' is no unit"):
        calc.evaluate(structures, batch_budget={"memory": 7})
    save_model(tmp_path / "m.model", affine_model())
    path = write_xyz(tmp_path / "a.xyz", structures)
    files = ["--configs", str(path), "--model", str(tmp_path / "m.model")]
    assert main([*files, "--output", str(tmp_path / "a"), "--batch_budget", "{edges: 20}"]) == 0
    assert main([*files, "--output", str(tmp_path / "b"), "--batch_size", "1"]) == 0
    written = [read(tmp_path / name, ":", format="extxyz") for name in "ab"]
    for one, other in zip(*written, strict=True):
        assert one.arrays["MACE_forces"] == pytest.approx(other.arrays["MACE_forces"], abs=2e-8)


@pytest.mark.filterwarnings("ignore")
def test_a_dry_run_proposes_a_budget_and_memory_is_estimated(tmp_path, monkeypatch, capsys):
    rank_cases.write_data(tmp_path)
    argv = rank_cases.config(tmp_path, "dry", batch_budget={"memory": 0.0005})
    made = []

    def recorded(*given, **more):
        made.append(original(*given, **more))
        return made[-1]

    original = training.memory_budget
    monkeypatch.setattr(training, "memory_budget", recorded)
    loads = []
    monkeypatch.setattr(
        training, "estimate_step", lambda *given, **more: loads.append((given, more)) or "nothing"
    )
    training.run_training(load_config([*argv, "--dry_run"]))
    text = capsys.readouterr().out
    assert "batches of at most 0.0005 GiB" in text
    assert "proposed: batch_budget: {edges: " in text
    (model, batch, _), more = loads[0]
    dataset = open_dataset(tmp_path / "train.xyz", 3.0)
    whole = [dataset[index] for index in range(len(dataset))]

    def kept(items, stage):
        return estimate_step(model, collate(items), stage, **more).graph

    # Once more of everything, so that the weights do not count.
    added = max(kept(2 * whole, given[2]) - kept(whole, given[2]) for given, _ in loads)
    assert len({(budget.per_atom, budget.per_edge) for budget in made}) == 1
    assert len(made) == 2
    expected = sum(made[0].cost(*size) for size in dataset.sizes())
    assert 0.5 < expected / added < 2.0
    assert sum(made[0].cost(*dataset.sizes()[i]) for i in batch.index.tolist()) <= 0.512
    assert batch.n_graphs < len(dataset)
    assert predict is more["predict"]
