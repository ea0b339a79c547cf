import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_training import DTYPE, ToyModel, toy_batch, toy_predict

from fpmace import registry
from fpmace.errors import ConfigError
from fpmace.metrics.errors import (
    QUANTITIES,
    ErrorAccumulator,
    check_error_table,
    measurable,
)
from fpmace.metrics.parity import ParityData, free_atom_energies
from fpmace.metrics.scf_summary import ScfSummary
from fpmace.metrics.tables import error_table
from fpmace.observables.types import Observables
from fpmace.plots import canvas
from fpmace.plots.parity import plot_parity, plot_training
from fpmace.training.evaluate import evaluate
from fpmace.training.losses import build_losses
from fpmace.training.recorder import MetricsRecorder

QUANTITIES_OF_TOY = [
    QUANTITIES[name] for name in ("energy", "energy_per_atom", "forces", "charges", "dipole")
]


def toy_prediction(batch):
    return toy_predict(ToyModel(), batch, mode=None, outputs=frozenset(), create_graph=False)


def test_streaming_errors_equal_those_of_all_at_once():
    batches = [toy_batch([3, 2], seed=1), toy_batch([4], seed=2), toy_batch([1, 1, 5], seed=3)]
    batches[1].weights["forces"][0] = 0.0
    accumulator = ErrorAccumulator(QUANTITIES_OF_TOY)
    errors, references = [], []
    for batch in batches:
        found = toy_prediction(batch)
        accumulator.update(batch, found)
        if batch is not batches[1]:
            errors.append((found.forces.detach() - batch.labels["forces"]).flatten())
            references.append(batch.labels["forces"].flatten())
    error, reference = torch.cat(errors), torch.cat(references)
    found = accumulator.statistics()["forces"]
    assert found.count == len(error) == 36
    assert found.rmse == pytest.approx(float(error.square().mean().sqrt()))
    assert found.mae == pytest.approx(float(error.abs().mean()))
    assert found.maximum == pytest.approx(float(error.abs().max()))
    assert found.relative_rmse == pytest.approx(
        100 * float(error.square().mean().sqrt() / reference.square().mean().sqrt())
    )


LOSSES = {"forces": 2.0, "energy_per_atom": 1.0}


def measured(batches):
    return evaluate(
        ToyModel(),
        batches,
        predict=toy_predict,
        mode=None,
        device=torch.device("cpu"),
        quantities=QUANTITIES_OF_TOY,
        losses=build_losses(LOSSES, where="loss"),
        parity=("energy",),
    )


def numbers(found):
    names = ("rmse", "mae", "maximum", "reference_rms", "count")
    errors = {
        (name, part): getattr(item, part) for name, item in found.errors.items() for part in names
    }
    return {**errors, **found.losses.terms, "loss": found.loss}


@given(
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=3, max_size=5),
    st.integers(1, 3),
)
def test_parts_of_a_data_set_add_up_in_any_grouping(sizes, cut):
    batches = [toy_batch(item, seed=seed) for seed, item in enumerate(sizes)]
    whole = numbers(measured(batches))
    left, right = measured(batches[:cut]), measured(batches[cut:])
    left.merge(right)
    assert numbers(left) == pytest.approx(whole, rel=1e-12)
    nested = measured(batches[1:2])
    nested.merge(measured(batches[2:]))
    first = measured(batches[:1])
    first.merge(nested)
    assert numbers(first) == pytest.approx(whole, rel=1e-12)
    assert first.parity["energy"].count == sum(map(len, sizes))


def test_epoch_loss_does_not_depend_on_the_batches():
    one, two = toy_batch([3, 2], seed=1), toy_batch([4], seed=2)
    found = measured([one, two])
    squares = [
        (toy_prediction(batch).forces.detach() - batch.labels["forces"]).square().flatten()
        for batch in (one, two)
    ]
    assert found.losses.terms["forces"] == pytest.approx(2.0 * float(torch.cat(squares).mean()))


def test_unlabelled_quantities_are_left_out():
    batch = toy_batch([3, 2])
    batch.weights["energy"][:] = 0.0
    accumulator = ErrorAccumulator(QUANTITIES_OF_TOY)
    accumulator.update(batch, toy_prediction(batch))
    assert "energy" not in accumulator.statistics()
    assert "forces" in accumulator.statistics()


def test_errors_by_group_add_up():
    batch = toy_batch([3, 2, 4])
    accumulator = ErrorAccumulator([QUANTITIES["forces"]], n_groups=2)
    accumulator.update(batch, toy_prediction(batch), torch.tensor([0, 1, 0]))
    first, second = (accumulator.statistics(group)["forces"] for group in (0, 1))
    whole = accumulator.statistics()["forces"]
    assert (first.count, second.count, whole.count) == (21, 6, 27)
    mean = (first.rmse**2 * 21 + second.rmse**2 * 6) / 27
    assert whole.rmse == pytest.approx(math.sqrt(mean))


def test_quantities_follow_labels_and_outputs():
    names = {
        item.name
        for item in measurable({"energy": 4, "forces": 0}, frozenset({"energy", "forces"}))
    }
    assert names == {"energy", "energy_per_atom"}


@pytest.mark.parametrize("name", registry.names("error_table"))
def test_every_table_has_units_and_known_quantities(name):
    table = registry.build("error_table", name)
    for column in table.columns():
        assert column.quantity in QUANTITIES
        assert " / " in column.title
    text = error_table(table, {"train": {}})
    assert "train" in text
    assert "-" in text


def test_table_shows_scaled_numbers():
    batch = toy_batch([3, 2])
    accumulator = ErrorAccumulator(QUANTITIES_OF_TOY)
    accumulator.update(batch, toy_prediction(batch))
    statistics = accumulator.statistics()
    text = error_table(registry.build("error_table", "PerAtomRMSE"), {"valid": statistics})
    assert f"{1000 * statistics['forces'].rmse:.4g}" in text
    assert "meV/atom" in text


def test_table_beyond_the_model_is_refused():
    table = registry.build("error_table", "DensityDipoleRMSE")
    with pytest.raises(ConfigError, match=r"error_table: table 'DensityDipoleRMSE'.*PerAtomRMSE"):
        check_error_table(
            table,
            named="DensityDipoleRMSE",
            available_outputs=frozenset({"energy", "forces", "stress", "virials"}),
            where="error_table",
        )


def evaluation():
    return evaluate(
        ToyModel(),
        [toy_batch([3, 2], seed=1), toy_batch([4], seed=2)],
        predict=toy_predict,
        mode=None,
        device=torch.device("cpu"),
        quantities=QUANTITIES_OF_TOY,
        losses=build_losses({"forces": 2.0}, where="loss"),
        groups=["a", "b", "a"],
        parity=("forces", "charges"),
        parity_limit=20,
    )


def test_evaluation_gathers_losses_groups_and_parity():
    found = evaluation()
    assert found.losses.n_graphs == 3
    assert set(found.errors_by_group) == {"a", "b"}
    assert found.parity["forces"].count == 20
    assert found.parity["charges"].count == 9
    json.dumps(found.to_json())


def test_energies_in_parity_are_less_the_free_atoms():
    batch = toy_batch([2, 3], seed=1)
    energies = {1: -10.0, 8: -400.0}
    free = torch.tensor([energies[int(z)] for z in batch.atomic_numbers], dtype=DTYPE)
    total = torch.zeros(2, dtype=DTYPE).index_add(0, batch.batch, free)
    labels = {**batch.labels, "energy": total + batch.atoms_per_graph * 0.5}
    batch = dataclasses.replace(batch, labels=labels)
    data = ParityData(10, [energies])
    prediction = Observables(energy=total + 0.1, forces=batch.labels["forces"])
    group = torch.tensor([3, 1])
    data.add(QUANTITIES["energy_per_atom"], batch, prediction, group)
    torch.testing.assert_close(data.reference[0], torch.full((2,), 0.5, dtype=DTYPE))
    torch.testing.assert_close(data.predicted[0], 0.1 / batch.atoms_per_graph.double())
    assert data.groups[0].tolist() == [3, 1]
    forces = ParityData(10)
    forces.add(QUANTITIES["forces"], batch, prediction, group)
    assert forces.groups[0].tolist() == [3] * 6 + [1] * 4
    assert free_atom_energies(torch.nn.Linear(1, 1)) == []


def test_panels_of_parity_show_errors_colours_and_units(tmp_path, monkeypatch):
    figures = []
    agg = canvas.FigureCanvasAgg
    monkeypatch.setattr(
        canvas, "FigureCanvasAgg", lambda figure: (figures.append(figure), agg(figure))
    )
    found = evaluation()
    assert plot_parity(found.parity, "test", tmp_path / "parity.png", found.groups)
    axis = figures[0].get_axes()[0]
    assert axis.get_xlabel() == "reference / eV/Å"
    assert axis.texts[0].get_text().startswith("RMSE ")
    assert axis.get_legend_handles_labels()[1] == ["a", "b"]
    level = {"fermi_level": found.parity["charges"]}
    assert plot_parity(level, "test", tmp_path / "level.png")
    assert figures[1].get_axes()[0].get_title() == "Fermi level"


def test_plots_are_written(tmp_path):
    found = evaluation()
    assert plot_parity(found.parity, "test", tmp_path / "parity.png")
    assert not plot_parity({}, "test", tmp_path / "none.png")
    valid = found.to_json()
    records = [
        {
            "epoch": epoch,
            "stage": epoch // 2,
            "stage_name": f"part {epoch // 2}",
            "lr": {"all": 0.01},
            "train": {"loss": 2.0 - epoch / 4},
            "valid": seen,
        }
        for epoch, seen in enumerate([valid, None, valid])
    ]
    records[0]["train"]["loss"] = None
    plot_training(records, tmp_path / "training.png")
    assert (tmp_path / "parity.png").stat().st_size > 1000
    assert (tmp_path / "training.png").stat().st_size > 1000


def test_recorder_drops_what_a_resumed_run_repeats(tmp_path):
    recorder = MetricsRecorder(tmp_path / "m.jsonl")
    recorder.begin(after_epoch=-1)
    for epoch in range(4):
        recorder.write({"epoch": epoch, "loss": float("nan")})
    with recorder.path.open("a") as stream:
        stream.write('{"epoch": 4, "lo')
    assert recorder.read()[0]["loss"] is None
    recorder.begin(after_epoch=1)
    assert [line["epoch"] for line in recorder.read()] == [0, 1]


def test_scf_summary_counts_structures():
    @dataclasses.dataclass
    class Result:
        status: torch.Tensor
        n_steps: torch.Tensor
        charge_error: torch.Tensor

    summary = ScfSummary()
    assert summary.to_json() is None
    summary.add(None)
    error = torch.tensor([1e-3, -2e-3], dtype=DTYPE)
    summary.add(Result(torch.tensor([0, 1]), torch.tensor([4, 10]), error))
    summary.add(Result(torch.tensor([0, 2]), torch.tensor([6, 10]), error))
    assert (summary.n_converged, summary.n_graphs, summary.max_steps) == (2, 4, 10)
    assert "2 of 4 structures (1 max_steps, 1 diverged), 7.5 steps" in str(summary)


def test_observables_without_density_are_not_measured_as_such():
    batch = toy_batch([3])
    only_energy = Observables(energy=torch.zeros(1, dtype=DTYPE))
    accumulator = ErrorAccumulator([QUANTITIES["energy"]])
    accumulator.update(batch, only_energy)
    assert accumulator.statistics()["energy"].mae == pytest.approx(
        float(batch.labels["energy"].abs())
    )
