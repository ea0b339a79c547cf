"""Losses against sums written out atom by atom."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from toy_training import DTYPE, toy_batch

from fpmace import registry
from fpmace.data.batch import Batch
from fpmace.errors import ConfigError, TrainingError
from fpmace.observables.types import Observables
from fpmace.scf.problem import FixedPointProblem
from fpmace.training.losses import Loss, build_losses, check_losses
from fpmace.training.losses.base import raise_problems

SIZES = [3, 5, 2]


def weighted_batch() -> Batch:
    batch = toy_batch(SIZES, seed=3)
    generator = torch.Generator().manual_seed(8)
    weights = {
        name: torch.rand(value.shape, generator=generator, dtype=DTYPE) + 0.1
        for name, value in batch.weights.items()
    }
    weights["energy"][1] = 0.0
    weights["fermi_level"][2] = 0.0
    weights["electrostatic_potentials"] = torch.tensor([1.0, 0.0, 2.0], dtype=DTYPE)
    labels = dict(batch.labels)
    labels["cluster_id"] = torch.tensor([0, 0, 1, 4, 4, 4, 2, 2, 0, 1])
    labels["born_charges"] = torch.randn(10, 3, 3, generator=generator, dtype=DTYPE)
    weights["born_charges"] = torch.tensor([1.0, 0.0, 2.0], dtype=DTYPE)
    labels["electrostatic_potentials"] = torch.randn(10, generator=generator, dtype=DTYPE)
    labels["spins"] = torch.randn(10, generator=generator, dtype=DTYPE)
    weights["spins"] = torch.tensor([1.0, 0.0, 2.0], dtype=DTYPE)
    weight = torch.tensor([1.0, 0.5, 2.0], dtype=DTYPE)
    return dataclasses.replace(batch, labels=labels, weights=weights, weight=weight)


def prediction(n: int = 10, g: int = 3, seed: int = 21, **more) -> Observables:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        value = torch.randn(*shape, generator=generator, dtype=DTYPE)
        return value.requires_grad_()

    return Observables(
        energy=normal(g),
        forces=normal(n, 3),
        stress=normal(g, 3, 3),
        virials=normal(g, 3, 3),
        dipole=normal(g, 3),
        density=normal(n, 4),
        fermi_level=normal(g),
        polarizability=normal(g, 3, 3),
        born_charges=normal(n, 3, 3),
        spin_density=normal(n, 4),
        **more,
    )


def detached(found):
    names = [item.name for item in dataclasses.fields(found)]
    tensors = {name: getattr(found, name) for name in names}
    return dataclasses.replace(
        found, **{k: v.detach() for k, v in tensors.items() if isinstance(v, torch.Tensor)}
    )


def graphs(batch):
    """(graph, configuration weight, atoms, slice of atoms)"""
    for g, n in enumerate(SIZES):
        start = int(batch.ptr[g])
        yield g, float(batch.weight[g]), n, range(start, start + n)


def huber(x, delta):
    return 0.5 * x * x if abs(x) <= delta else delta * (abs(x) - 0.5 * delta)


def per_graph(batch, predicted, name, divide, function=lambda x: x * x):
    total, count = 0.0, 0
    for g, weight, n, _ in graphs(batch):
        reference = batch.labels[name][g].flatten()
        value = predicted[g].detach().flatten()
        own = batch.weights[name][g].flatten().expand(len(reference))
        for c in range(len(reference)):
            difference = float(value[c] - reference[c]) / (n if divide else 1)
            total += weight * float(own[c]) * function(difference)
            count += 1
    return total / count


def per_atom(batch, predicted, name, function=lambda x: x * x):
    total, count = 0.0, 0
    for g, weight, _, atoms in graphs(batch):
        for i in atoms:
            for c in range(predicted.shape[1]):
                difference = float(predicted[i, c].detach() - batch.labels[name][i].flatten()[c])
                total += weight * float(batch.weights[name][g]) * function(difference)
                count += 1
    return total / count


def total_charge(batch, found, divide):
    total = 0.0
    for g, weight, n, atoms in graphs(batch):
        error = sum(float(found.density[i, 0]) for i in atoms) - float(batch.total_charge[g])
        total += weight * (error / (n if divide else 1)) ** 2
    return total / 3


def fermi_level(batch, found, divide):
    total = 0.0
    for g, weight, n, _ in graphs(batch):
        if batch.weights["fermi_level"][g] > 0:
            error = float(found.fermi_level[g] - batch.fermi_level[g])
            total += weight * (error / (n if divide else 1)) ** 2
    return total / 3


def l2_forces(batch, found):
    total = 0.0
    for g, weight, _, atoms in graphs(batch):
        for i in atoms:
            error = (found.forces[i] - batch.labels["forces"][i]).detach()
            total += weight * float(batch.weights["forces"][g]) * math.sqrt(float(error @ error))
    return total / 10


def molecular(batch, found, kind):
    total = 0.0
    for g, weight, n, atoms in graphs(batch):
        molecules = {}
        for i in atoms:
            molecules.setdefault(int(batch.labels["cluster_id"][i]), []).append(i)
        squares, virial = 0.0, 0.0
        for members in molecules.values():
            error = sum((found.forces[i] - batch.labels["forces"][i]).detach() for i in members)
            centre = sum(batch.positions[i] for i in members) / len(members)
            squares += float(error @ error)
            virial += float(centre @ error)
        value = {
            "molecular_forces": squares / n,
            "cluster_virial": virial**2,
            "cluster_virial_per_atom": virial**2 / n,
        }[kind]
        total += weight * float(batch.weights["forces"][g]) * value
    return total / 3


EXPECTED = {
    "energy_per_atom": lambda b, p: per_graph(b, p.energy, "energy", True),
    "forces": lambda b, p: per_atom(b, p.forces, "forces"),
    "stress": lambda b, p: per_graph(b, p.stress, "stress", False),
    "virials": lambda b, p: per_graph(b, p.virials, "virials", True),
    "atomic_multipoles": lambda b, p: per_atom(b, p.density, "atomic_multipoles"),
    "charges": lambda b, p: per_atom(b, p.density[:, :1], "charges"),
    "spins": lambda b, p: per_atom(b, p.spin_density[:, :1], "spins"),
    "total_charge": lambda b, p: total_charge(b, p, False),
    "total_charge_per_atom": lambda b, p: total_charge(b, p, True),
    "dipole": lambda b, p: per_graph(b, p.dipole, "dipole", False),
    "dipole_per_atom": lambda b, p: per_graph(b, p.dipole, "dipole", True),
    "polarizability": lambda b, p: per_graph(b, p.polarizability, "polarizability", True),
    "born_charges": lambda b, p: per_atom(b, p.born_charges.flatten(1), "born_charges"),
    "fermi_level": lambda b, p: fermi_level(b, p, False),
    "fermi_level_per_atom": lambda b, p: fermi_level(b, p, True),
    "huber_energy_per_atom": lambda b, p: per_graph(
        b, p.energy, "energy", True, lambda x: huber(x, 0.01)
    ),
    "huber_forces": lambda b, p: per_atom(b, p.forces, "forces", lambda x: huber(x, 0.01)),
    "huber_stress": lambda b, p: per_graph(b, p.stress, "stress", False, lambda x: huber(x, 0.01)),
    "l1_energy_per_atom": lambda b, p: per_graph(b, p.energy, "energy", True, abs),
    "l1_forces": lambda b, p: per_atom(b, p.forces, "forces", abs),
    "l2_forces": l2_forces,
    "molecular_forces": lambda b, p: molecular(b, p, "molecular_forces"),
    "cluster_virial": lambda b, p: molecular(b, p, "cluster_virial"),
    "cluster_virial_per_atom": lambda b, p: molecular(b, p, "cluster_virial_per_atom"),
}


def toy_problem(batch, response, fermi=0.0):
    """G(q, mu) = q @ response + mu * fermi in the charge; features 3 q; potential the charge."""

    def evaluate(density, level):
        charge = torch.zeros_like(density)
        charge[:, 0] = 1.0
        return density @ response + fermi * level.unsqueeze(-1) * charge, 3.0 * density

    return FixedPointProblem(
        evaluate=evaluate,
        features=lambda density, level: 3.0 * density + level.unsqueeze(-1),
        linearise=lambda density, level: None,
        local_density=torch.zeros(10, 4, dtype=DTYPE),
        batch=batch.batch,
        atoms_per_graph=batch.atoms_per_graph,
        target_charge=None,
        is_affine=True,
        potentials=lambda density: 2.0 * density[:, 0],
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_value_is_that_of_the_written_out_sum(name):
    batch, found = weighted_batch(), prediction()
    loss = registry.build("loss", name)
    value = loss(batch, found)
    assert value.shape == ()
    expected = EXPECTED[name](batch, detached(found))
    assert float(value.detach()) == pytest.approx(expected, rel=1e-12)
    value.backward()


def test_every_registered_loss_is_covered():
    with_problem = {
        "esps",
        "field_features",
        "fixedpoint_scf_stability",
        "final_terms_fixedpoint_scf_stability",
        "fermi_level_gradient",
        "response_bound",
    }
    in_pairs = {"field_pairs"}  # tests/unit/test_losses_response.py
    assert set(registry.names("loss")) == set(EXPECTED) | with_problem | in_pairs


def test_labels_without_weight_do_not_matter():
    batch, found = weighted_batch(), prediction()
    loss = registry.build("loss", "energy_per_atom")
    value = loss(batch, found)
    batch.labels["energy"][1] += 100.0
    assert loss(batch, found) == value


INPUTS = {"total_charge", "total_charge_per_atom", "fermi_level", "fermi_level_per_atom"}
"""Their reference is an input of every batch, not a label."""


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - INPUTS))
def test_batch_without_the_label_gives_zero(name):
    batch = dataclasses.replace(weighted_batch(), labels={}, weights={})
    value = registry.build("loss", name)(batch, prediction())
    value.backward()
    assert float(value.detach()) == 0.0


def test_multipoles_of_fewer_degrees_are_compared_where_both_exist():
    batch, found = weighted_batch(), prediction()
    charges_only = dataclasses.replace(found, density=found.density[:, :1])
    value = registry.build("loss", "atomic_multipoles")(batch, charges_only)
    assert float(value.detach()) == pytest.approx(
        per_atom(batch, charges_only.density, "atomic_multipoles")
    )


def test_potential_losses():
    batch = weighted_batch()
    found = prediction(problem=toy_problem(batch, torch.eye(4, dtype=DTYPE)))
    weight = (batch.weight * batch.weights["atomic_multipoles"])[batch.batch]
    error = batch.labels["atomic_multipoles"] - found.density
    expected = (weight * (2.0 * error[:, 0]) ** 2).mean()
    multipoles = registry.build("loss", {"type": "esps", "reference": "multipoles"})
    torch.testing.assert_close(multipoles(batch, found), expected)
    labelled = registry.build("loss", {"type": "esps", "reference": "labels"})
    assert labelled.requires_labels == ("electrostatic_potentials",)
    own = (batch.weight * batch.weights["electrostatic_potentials"])[batch.batch]
    error_of_label = batch.labels["electrostatic_potentials"] - 2.0 * found.density[:, 0]
    torch.testing.assert_close(labelled(batch, found), (own * error_of_label**2).mean())
    mixed = torch.where(own > 0, own * error_of_label**2, weight * (2.0 * error[:, 0]) ** 2)
    torch.testing.assert_close(registry.build("loss", "esps")(batch, found), mixed.mean())
    alone = {"electrostatic_potentials": batch.labels["electrostatic_potentials"]}
    bare = dataclasses.replace(
        batch, labels=alone, weights={**batch.weights, "atomic_multipoles": 0 * batch.weight}
    )
    value = registry.build("loss", "esps")(bare, found)
    torch.testing.assert_close(value, (own * error_of_label**2).mean())
    expected = (weight.unsqueeze(-1) * (3.0 * error) ** 2).mean()
    torch.testing.assert_close(registry.build("loss", "field_features")(batch, found), expected)


@pytest.mark.parametrize("smooth", [True, False])
def test_stability_loss_of_a_uniform_response(smooth):
    batch = weighted_batch()
    factor = torch.tensor(1.5, dtype=DTYPE, requires_grad=True)
    problem = toy_problem(batch, factor * torch.eye(4, dtype=DTYPE))
    found = prediction(problem=problem)
    loss = registry.build("loss", {"type": "fixedpoint_scf_stability", "smooth": smooth})
    value = loss(batch, found)
    excess = 1.5**2 - 1.0
    expected = math.log1p(math.exp(10.0 * excess)) / 10.0 if smooth else excess
    assert float(value.detach()) == pytest.approx(expected)
    value.backward()
    slope = 1.0 / (1.0 + math.exp(-10.0 * excess)) if smooth else 1.0
    assert float(factor.grad) == pytest.approx(2 * 1.5 * slope)


def test_stability_loss_without_gradients():
    batch = weighted_batch()
    found = prediction(problem=toy_problem(batch, 0.5 * torch.eye(4, dtype=DTYPE)))
    detached = dataclasses.replace(found, density=found.density.detach())
    with torch.no_grad():
        value = registry.build("loss", "fixedpoint_scf_stability")(batch, detached)
    assert float(value.detach()) == pytest.approx(math.log1p(math.exp(-7.5)) / 10)


def test_fixed_point_residual_and_fermi_level_losses():
    batch = weighted_batch()
    problem = toy_problem(batch, 2.0 * torch.eye(4, dtype=DTYPE), fermi=0.25)
    found = prediction(problem=problem)
    level = found.fermi_level[batch.batch]
    change = found.density.clone()
    change[:, 0] = change[:, 0] + 0.25 * level
    residual = registry.build("loss", "final_terms_fixedpoint_scf_stability")(batch, found)
    torch.testing.assert_close(residual, change.abs().mean())
    rising = registry.build("loss", "fermi_level_gradient")(batch, found)
    assert float(rising.detach()) == pytest.approx(0.25 * sum(SIZES) / 3)
    falling = prediction(problem=toy_problem(batch, torch.eye(4, dtype=DTYPE), fermi=-0.25))
    assert float(registry.build("loss", "fermi_level_gradient")(batch, falling).detach()) == 0.0


def test_weighted_sum_and_its_terms():
    batch, found = weighted_batch(), prediction()
    losses = build_losses(
        {"forces": 100.0, "huber_energy_per_atom": {"weight": 2.0, "delta": 0.5}}, where="loss"
    )
    assert losses.requires_outputs == {"energy", "forces"}
    total, terms = losses(batch, found)
    forces = registry.build("loss", "forces")(batch, found)
    robust = registry.build("loss", {"type": "huber_energy_per_atom", "delta": 0.5})(batch, found)
    torch.testing.assert_close(total, 100.0 * forces + 2.0 * robust)
    assert float(terms["forces"]) == pytest.approx(100.0 * float(forces.detach()))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no loss given"),
        ({"force": 1.0}, "did you mean 'forces'"),
        ({"forces": -1.0}, "expected a finite weight >= 0"),
        ({"forces": "much"}, "expected a finite weight >= 0"),
        ({"huber_forces": {"delta": 0.1}}, "expected a finite weight >= 0"),
        ({"huber_forces": {"weight": 1.0, "width": 0.1}}, "no option 'width'"),
        (
            {"huber_forces": {"weight": 1.0, "delta": 0.0}},
            "delta: .* above 0, got 0.0",
        ),
    ],
)
def test_wrong_loss_blocks(config, message):
    with pytest.raises(ConfigError, match=message):
        build_losses(config, where="train_schedule.0.loss")


def test_missing_labels_and_outputs_are_named():
    losses = build_losses({"forces": 1.0, "dipole": 1.0}, where="x")
    problems = check_losses(
        losses,
        where="train_schedule.1.loss",
        label_counts={"forces": 5},
        n_configurations=5,
        available_outputs=frozenset({"energy", "dipole"}),
        looked_for={"dipole": "info['REF_dipole']"},
    )
    assert len(problems) == 2
    assert "loss.forces: needs the prediction 'forces'" in problems[0]
    assert "needs label 'dipole'; 0 of 5 training configurations" in problems[1]
    assert "info['REF_dipole']" in problems[1]
    with pytest.raises(TrainingError, match="dipole"):
        raise_problems(problems)
    raise_problems([])


def test_prediction_that_is_not_there_is_named():
    with pytest.raises(TrainingError, match="no 'forces'"):
        registry.build("loss", "forces")(weighted_batch(), Observables(energy=torch.zeros(3)))


def test_users_register_their_own():
    @registry.register_loss("test_charge_size")
    class ChargeSize(Loss):
        """Mean squared charge."""

        requires_outputs = ("density",)

        def __init__(self, *, scale: float = 1.0) -> None:
            self.scale = scale

        def __call__(self, batch, found):
            return self.scale * found.density[:, 0].square().mean()

    try:
        config = {"test_charge_size": {"weight": 2.0, "scale": 3.0}}
        total, _ = build_losses(config, where="loss")(weighted_batch(), prediction())
        assert float(total.detach()) > 0
    finally:
        registry.unregister("loss", "test_charge_size")


def test_documented_example_trains_as_a_plugin():
    example = Path(__file__).parents[2] / "docs" / "examples" / "my_loss.py"
    registry.load_plugins([str(example)])
    config = {"charge_size": {"weight": 0.1, "power": 2.0}}
    total, _ = build_losses(config, where="loss")(weighted_batch(), prediction())
    total.backward()


class _Wrong(Loss):
    """Forgets to average."""

    requires_outputs = ("density",)

    def __call__(self, batch, found):
        return found.density[:, 0].square()


class _Number(Loss):
    """Returns a number."""

    def __call__(self, batch, found):
        return 1.0


@pytest.mark.parametrize(("loss", "what"), [(_Wrong(), r"\[10\]"), (_Number(), "float")])
def test_own_loss_that_is_not_a_scalar_is_refused_with_the_remedy(loss, what):
    with pytest.raises(TrainingError, match=rf"returned {what}, expected a scalar.*\.mean\(\)"):
        loss.average(weighted_batch(), prediction())


@pytest.mark.parametrize("name", EXPECTED)
def test_sums_and_counts_of_two_batches_add_up(name):
    loss, batch, found = registry.build("loss", name), weighted_batch(), prediction()
    whole = loss.average(batch, found)
    keep = torch.tensor([True, False, True])
    parts = []
    for chosen in (keep, ~keep):
        atoms = chosen[batch.batch]
        cut = {
            item.name: value[chosen if len(value) == 3 else atoms]
            for item in dataclasses.fields(found)
            if isinstance(value := getattr(found, item.name), torch.Tensor)
        }
        parts.append(loss.average(batch.select(chosen), dataclasses.replace(found, **cut)))
    torch.testing.assert_close((parts[0] + parts[1]).mean, whole.mean)
    assert parts[0].count + parts[1].count == whole.count
