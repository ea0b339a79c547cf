"""Losses on polarizabilities and Born charges: their gradients by the parameters are exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixed_point_cases import batch_of, make_mode, observe, scaled_model, structure
from passive_cases import passive_model
from torch import Tensor

from fpmace import registry
from fpmace.data.batch import Batch
from fpmace.models.fixed_point_core import FixedPointCore

LOSSES = {"polarizability": "polarizability", "born_charges": "born_charges"}
"""Loss and the output that it needs."""

RULE = "field_dependent_charges_map"
WEIGHTS = (
    "backbone.products.0.linear.weight",
    "lr_source_maps.0.linear.weight",
    f"{RULE}.potential_embedding.prod.weight",
    f"{RULE}.dot_products.weight",
)
"""One weight of the features, one of the local density, two of the update rule.

The polarizability of an affine rule does not depend on the local density.
"""


def labelled(boundary: str) -> Batch:
    """Two structures, of which one carries the labels."""
    batch = batch_of(structure(boundary), structure(boundary, field=(0.02, 0.0, -0.03)))
    generator = torch.Generator().manual_seed(4)
    labels = {
        "polarizability": torch.randn(2, 3, 3, generator=generator, dtype=torch.float64),
        "born_charges": torch.randn(batch.n_atoms, 3, 3, generator=generator, dtype=torch.float64),
    }
    weight = torch.tensor([0.0, 1.5], dtype=torch.float64)
    return replace(
        batch,
        labels={**batch.labels, **labels},
        weights={**batch.weights, **dict.fromkeys(labels, weight)},
        weight=torch.ones(2, dtype=torch.float64),
    )


def value(
    model: FixedPointCore, batch: Batch, name: str, mode: str, *, create_graph: bool
) -> Tensor:
    solver = {"solver": "linear", "mixing_parameter": 0.7} if mode == "unroll_scf" else {}
    chosen = make_mode(mode, scf_tolerance=1e-13, charge_tolerance=1e-11, **solver)
    found = observe(model, batch, chosen, (LOSSES[name],), create_graph=create_graph)
    return registry.build("loss", name)(batch, found)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("rule", "boundary"), [("mlp", "realspace"), ("affine", "pbc"), ("passive", "realspace")]
)
def test_parameter_gradients_are_those_of_finite_differences(
    name: str, rule: str, boundary: str
) -> None:
    passive = rule == "passive"
    model = passive_model(boundary) if passive else scaled_model(rule, boundary, eigenvalue=-0.6)
    batch = labelled(boundary)
    value(model, batch, name, "implicit", create_graph=True).backward()
    rule_weights = dict(model.field_dependent_charges_map.named_parameters(prefix=RULE))
    places = [*WEIGHTS[:2], *(rule_weights if passive else WEIGHTS[2:])]
    reached = [w for w in map(model.get_parameter, places) if w.grad is not None]
    assert len(reached) >= 3
    for weight in reached:
        direction = weight.grad / weight.grad.norm()
        step = 1e-3 * float(weight.detach().abs().max())
        slopes = []
        for shift in (step, -step, 2 * step, -2 * step):
            with torch.no_grad():
                weight.add_(shift * direction)
            slopes.append(float(value(model, batch, name, "scf", create_graph=False)))
            with torch.no_grad():
                weight.sub_(shift * direction)
        near, far = slopes[0] - slopes[1], slopes[2] - slopes[3]
        expected = (8.0 * near - far) / (12.0 * step)
        assert float(weight.grad.norm()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_modes_agree(name: str) -> None:
    model = scaled_model("mlp", "realspace", eigenvalue=-0.6)
    batch = labelled("realspace")
    found = {}
    for mode in ("implicit", "linearize_solve", "unroll_scf"):
        model.zero_grad()
        value(model, batch, name, mode, create_graph=True).backward()
        found[mode] = torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        )
    scale = float(found["implicit"].norm())
    assert scale > 0
    for mode in ("linearize_solve", "unroll_scf"):
        torch.testing.assert_close(found[mode], found["implicit"], rtol=1e-5, atol=1e-6 * scale)
