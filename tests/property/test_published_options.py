"""Smoothness and derivatives of the parts that published models are made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from backbone_cases import INTERACTIONS, batch_of, evaluate, model, moved, rotation, structure

from fpmace.blocks.coupling import symmetric_coupling
from fpmace.errors import ConfigError, DataError
from fpmace.models.mace import ScaleShiftMACE
from fpmace.observables.predict import predict

NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
BLOCKS = {"interaction_cls": NONLINEAR, "interaction_cls_first": NONLINEAR}
OUTSIDE = {"apply_cutoff": False, "edge_irreps": "2x0e+2x1o", "use_edge_irreps_first": True}
DENSITY = "RealAgnosticDensityResidualInteractionBlock"
CASES = {
    "nonlinear": {**BLOCKS, "correlation": 2},
    "nonlinear, cutoff outside": {**BLOCKS, **OUTSIDE, "correlation": 1, "readout_bias": True},
    "density, cutoff outside": {"interaction_cls": DENSITY, **OUTSIDE, "gate": "tanh"},
    "last readout only": {"use_last_readout_only": True, "num_interactions": 1},
    "chebyshev of agnesi": {"radial_type": "chebyshev", "distance_transform": "Agnesi"},
    "trained radial parts": {
        "radial_type": {"type": "bessel", "trainable": True},
        "distance_transform": {"type": "Agnesi", "trainable": True},
        "pair_repulsion": {"type": "ZBL", "trainable": True},
    },
    "soft, gaussian": {
        "radial_type": "gaussian",
        "distance_transform": {"type": "Soft", "trainable": True},
        "pair_repulsion": "ZBL",
    },
    "vectors in the last layer": {"keep_last_layer_irreps": True, "num_interactions": 2},
    "lean product": {"use_agnostic_product": True, "use_reduced_cg": True},
    "embedded inputs": {
        "use_embedding_readout": True,
        "embedding_specs": {
            "total_spin": {"type": "categorical", "emb_dim": 3, "num_classes": 4},
            "total_charge": {"type": "continuous", "emb_dim": 2},
            "external_field": {
                "type": "continuous",
                "emb_dim": 2,
                "in_dim": 3,
                "use_bias": False,
            },
        },
    },
}


def _model(name):
    return model(ScaleShiftMACE, **CASES[name])


def _derivative(function, step):
    """Of a function of one number at 0, with an error of the fourth order."""
    near, far = (function(k * step) - function(-k * step) for k in (1, 2))
    return (8 * near - far) / (12 * step)


@pytest.mark.parametrize("name", CASES)
def test_forces_and_stress_are_derivatives_of_the_energy(name):
    m, item = _model(name), structure()
    found = predict(m, batch_of(m, item), outputs=("forces", "stress"))
    rng = np.random.default_rng(1)
    way, strain = rng.normal(size=(6, 3)), rng.normal(size=(3, 3))
    strain = strain + strain.T

    def along(x):
        return evaluate(m, {**item, "positions": item["positions"] + x * way}).energy.item()

    def strained(x):
        change = np.eye(3) + x * strain
        moved = {key: item[key] @ change for key in ("positions", "cell")}
        return evaluate(m, {**item, **moved}).energy.item()

    scale = found.forces.abs().max().item()
    assert _derivative(along, 1e-4) == pytest.approx(
        -float((found.forces.numpy() * way).sum()), abs=1e-8 * scale
    )
    work = float((found.stress[0].numpy() * strain).sum()) * abs(np.linalg.det(item["cell"]))
    assert _derivative(strained, 1e-4) == pytest.approx(work, abs=1e-8 * scale)


@pytest.mark.parametrize("name", CASES)
def test_gradient_of_a_loss_on_forces_and_stress(name):
    m = _model(name)
    batch = batch_of(m, structure(0, 4), structure(1, 3))
    parameters = [p for p in m.parameters() if p.numel()]
    torch.manual_seed(3)
    way = [torch.randn_like(p) for p in parameters]

    def loss():
        found = predict(m, batch, outputs=("energy", "forces", "stress"), create_graph=True)
        return sum(getattr(found, n).tanh().sum() for n in ("energy", "forces", "stress"))

    def along(x):
        for p, w in zip(parameters, way, strict=True):
            p.data += x * w
        value = loss().item()
        for p, w in zip(parameters, way, strict=True):
            p.data -= x * w
        return value

    with torch.no_grad():
        for p in m.readouts.parameters():
            p.mul_(0.05)
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    pairs = zip(gradients, way, strict=True)
    expected = sum((g * w).sum().item() for g, w in pairs if g is not None)
    assert _derivative(along, 1e-5) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_invariance_and_precision(name):
    m, item = _model(name), structure()
    reference = evaluate(m, item).node_energy.detach()
    turned = evaluate(m, moved(item, rotation())).node_energy.detach()
    torch.testing.assert_close(turned, reference, rtol=1e-11, atol=1e-11)
    batch = batch_of(m, item)
    single = predict(m.to(torch.float32), batch.to(dtype=torch.float32), outputs=("forces",))
    assert single.forces.dtype == torch.float32
    scale = reference.abs().max().item()
    torch.testing.assert_close(
        single.node_energy.double(), reference, rtol=1e-5, atol=1e-5 * scale
    )


def _jump(m):
    """Change of energy as an atom comes within r_max of another, which has a near neighbour."""
    energies = []
    for far in (-1e-7, 1e-7):
        positions = np.array([[0.0, 0, 0], [m.r_max + far, 0, 0], [0, 1.4, 0]])
        item = {"positions": positions, "numbers": np.array([1, 6, 8]), "cell": np.zeros((3, 3))}
        energies.append(evaluate(m, {**item, "pbc": np.array([False] * 3)}).energy.item())
    return abs(energies[0] - energies[1])


@pytest.mark.parametrize("block", INTERACTIONS)
def test_no_jump_at_the_cutoff_radius_with_the_cutoff_outside_of_the_basis(block):
    assert _jump(model(interaction_cls=block, interaction_cls_first=block, **OUTSIDE)) < 1e-9


def test_the_nonlinear_block_jumps_with_the_cutoff_in_the_basis():
    assert _jump(model(**BLOCKS)) > 1e-6


def test_widths_of_the_convolution():
    m = model(**BLOCKS, **OUTSIDE)
    first, second = m.backbone.interactions
    assert str(first.conv_tp.node_irreps) == "2x0e"
    assert str(second.conv_tp.node_irreps) == "2x0e+2x1o"
    plain = model(interaction_cls_first=NONLINEAR, edge_irreps="2x0e+2x1o")
    assert str(plain.backbone.interactions[0].conv_tp.node_irreps) == "3x0e"


def test_inputs_are_embedded_and_refused_outside_of_their_range():
    m, item = _model("embedded inputs"), structure()
    batch = batch_of(m, item)
    assert m.inputs == {"total_spin", "total_charge", "external_field"}

    def energy(**changes):
        new = {key: torch.tensor([value]).double() for key, value in changes.items()}
        return predict(m, replace(batch, **new), outputs=("energy",)).energy.item()

    given = {energy(), energy(total_charge=1.0), energy(total_spin=2.0)}
    assert len(given | {energy(external_field=[0.0, 0.0, 0.1])}) == 4
    with pytest.raises(DataError, match=r"total_spin: 4 is outside of 0 to 3"):
        energy(total_spin=4.0)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({"charge": {"type": "continuous"}}, r"embedding_specs.charge: no input .* 'charge'"),
        ({"total_charge": {"type": "fuzzy"}}, r"embedding_specs.total_charge.type: expects"),
        ({"total_charge": {"dim": 3}}, r"embedding_specs.total_charge: no option 'dim'"),
        ({"external_field": {"type": "continuous"}}, r"external_field has 3 numbers, got 1"),
    ],
)
def test_embeddings_that_are_not_understood(specs, message):
    with pytest.raises(ConfigError, match=message):
        model(embedding_specs=specs)


def test_reduced_polynomials_span_the_same_space():
    whole = symmetric_coupling(3, 1, 3)
    reduced = symmetric_coupling(3, 1, 3, True)
    assert reduced.n_paths < whole.n_paths
    flat = [c.values.reshape(-1, c.n_paths) for c in (whole, reduced)]
    ranks = [np.linalg.matrix_rank(np.hstack(x), tol=1e-8) for x in (flat, flat[:1], flat[1:])]
    assert ranks == [reduced.n_paths] * 3
