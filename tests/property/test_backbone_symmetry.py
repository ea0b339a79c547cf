"""Symmetries of energies and features."""

import numpy as np
import pytest
import torch
from backbone_cases import (
    INTERACTIONS,
    OPTIONS,
    batch_of,
    evaluate,
    model,
    moved,
    rotation,
    structure,
)
from drawn import orders, rotations, shifts
from hypothesis import given, settings

from fpmace.models.backbone import Backbone
from fpmace.models.geometry import element_index, make_geometry

CLOSE = {"rtol": 0.0, "atol": 1e-11}


@pytest.mark.parametrize("block", INTERACTIONS)
@settings(max_examples=4)
@given(matrix=rotations(), shift=shifts(), order=orders(6))
def test_energy_is_invariant(block, matrix, shift, order):
    m = model(interaction_cls=block, interaction_cls_first=block)
    item = structure()
    reference = evaluate(m, item).node_energy
    torch.testing.assert_close(evaluate(m, moved(item, matrix)).node_energy, reference, **CLOSE)
    shifted = {**item, "positions": item["positions"] + shift}
    torch.testing.assert_close(evaluate(m, shifted).node_energy, reference, **CLOSE)
    permuted = {**item, "positions": item["positions"][order], "numbers": item["numbers"][order]}
    torch.testing.assert_close(evaluate(m, permuted).node_energy, reference[order], **CLOSE)


def _backbone(order, **options):
    torch.manual_seed(1)
    chosen = {
        key: value
        for key, value in {**OPTIONS, **options}.items()
        if key not in ("MLP_irreps", "atomic_energies")
    }
    return Backbone(vector_order=order, last_layer_scalars_only=False, **chosen)


def _features(backbone, item):
    m = model()
    batch = batch_of(m, item)
    geometry = make_geometry(batch, element_index(m.atomic_numbers, batch))
    return backbone(geometry).node_feats_per_layer


@pytest.mark.parametrize("order", ["xyz", "yzx"])
@pytest.mark.parametrize("block", INTERACTIONS)
def test_vector_features_rotate_in_the_order_asked_for(order, block):
    backbone = _backbone(order, interaction_cls=block)
    matrix = rotation()
    axes = [0, 1, 2] if order == "xyz" else [1, 2, 0]
    shuffled = torch.from_numpy(matrix[np.ix_(axes, axes)])
    before = _features(backbone, structure())
    after = _features(backbone, moved(structure(), matrix))
    inverted = _features(backbone, moved(structure(), -np.eye(3)))
    for old, new, flipped in zip(before, after, inverted, strict=True):
        torch.testing.assert_close(new[:, :3], old[:, :3], **CLOSE)
        vectors = old[:, 3:].reshape(-1, 3, 3)
        torch.testing.assert_close(new[:, 3:].reshape(-1, 3, 3), vectors @ shuffled.T, **CLOSE)
        torch.testing.assert_close(flipped[:, 3:], -old[:, 3:], **CLOSE)


def test_the_two_orders_differ_by_a_permutation():
    xyz = _features(_backbone("xyz"), structure())
    yzx = _features(_backbone("yzx"), structure())
    for a, b in zip(xyz, yzx, strict=True):
        torch.testing.assert_close(a[:, :3], b[:, :3], **CLOSE)
        vectors = a[:, 3:].reshape(-1, 3, 3)[..., [1, 2, 0]]
        torch.testing.assert_close(b[:, 3:].reshape(-1, 3, 3), vectors, **CLOSE)


def test_higher_hidden_degrees_keep_their_norm():
    backbone = _backbone("xyz", hidden_irreps="2x0e+2x1o+2x2e", max_ell=2, correlation=2)
    before = _features(backbone, structure())
    after = _features(backbone, moved(structure(), rotation()))
    for old, new in zip(before, after, strict=True):
        old_norm = old[:, 8:].reshape(-1, 2, 5).norm(dim=-1)
        torch.testing.assert_close(new[:, 8:].reshape(-1, 2, 5).norm(dim=-1), old_norm, **CLOSE)


@pytest.mark.parametrize("block", INTERACTIONS)
def test_a_graph_does_not_depend_on_its_batch(block):
    m = model(interaction_cls=block, interaction_cls_first=block)
    items = [structure(0), structure(1, 4, periodic=False), structure(2, 1, periodic=False)]
    together = evaluate(m, *items)
    alone = [evaluate(m, item) for item in items]
    torch.testing.assert_close(together.energy, torch.cat([x.energy for x in alone]), **CLOSE)
    features = torch.cat([x.node_feats for x in alone])
    torch.testing.assert_close(together.node_feats, features, **CLOSE)


@pytest.mark.parametrize("block", INTERACTIONS)
def test_isolated_atoms_have_a_finite_energy(block):
    m = model(interaction_cls=block, interaction_cls_first=block)
    lone = structure(0, 1, periodic=False)
    batch = batch_of(m, lone)
    assert batch.edge_index.shape[1] == 0
    positions = batch.positions.clone().requires_grad_(True)
    from dataclasses import replace

    energy = m(m.geometry(replace(batch, positions=positions))).energy
    (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    gradient.square().sum().backward()
    assert torch.isfinite(energy).all()
    assert (gradient == 0).all()


def test_supercell_has_twice_the_energy():
    m = model()
    item = structure()
    images = [item["positions"], item["positions"] + item["cell"][0]]
    double = {
        "positions": np.concatenate(images),
        "numbers": np.tile(item["numbers"], 2),
        "cell": item["cell"] * np.array([[2.0], [1.0], [1.0]]),
        "pbc": item["pbc"],
    }
    energy = evaluate(m, item).energy
    torch.testing.assert_close(evaluate(m, double).energy, 2.0 * energy, **CLOSE)


def test_one_element_and_one_layer():
    m = model(atomic_numbers=[8], atomic_energies=[1.0], num_interactions=1)
    item = {**structure(), "numbers": np.full(6, 8)}
    reference = evaluate(m, item).energy
    torch.testing.assert_close(evaluate(m, moved(item, rotation())).energy, reference, **CLOSE)


@pytest.mark.parametrize("options", [{"max_ell": 0, "hidden_irreps": "3x0e"}, {"correlation": 1}])
def test_smallest_models_work(options):
    m = model(**options)
    reference = evaluate(m, structure()).energy
    after = evaluate(m, moved(structure(), rotation())).energy
    torch.testing.assert_close(after, reference, **CLOSE)


def test_gaussian_basis_and_correlation_per_layer():
    m = model(radial_type="gaussian", correlation=[4, 1], max_ell=1)
    reference = evaluate(m, structure()).energy
    after = evaluate(m, moved(structure(), rotation())).energy
    torch.testing.assert_close(after, reference, **CLOSE)
