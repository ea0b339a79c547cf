"""Tables of radial functions and backbones in blocks: against the plain evaluation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from backbone_cases import INTERACTIONS, batch_of, derivatives, evaluate, model, structure

from fpmace.blocks.radial_table import TABLES, RadialTables
from fpmace.calculators.inference import Inference
from fpmace.errors import ConfigError
from fpmace.kernels.choice import use_kernels
from fpmace.kernels.compiler import find_compiler

STEP = 1e-4
KERNELS = ["torch", *(["c"] if find_compiler() else [])]
NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
CASES = [
    *({"interaction_cls": name, "interaction_cls_first": name} for name in INTERACTIONS),
    {
        "interaction_cls": NONLINEAR,
        "interaction_cls_first": NONLINEAR,
        "apply_cutoff": False,
        "distance_transform": "Agnesi",
    },
]


def _waves(r, source, target):
    return [torch.stack([torch.sin((k + 1) * r) * (source - 2 * target) for k in range(8)], -1)]


@pytest.mark.parametrize("kernel", TABLES)
def test_tables_have_right_derivatives_to_the_third_order(kernel):
    if kernel not in KERNELS:
        pytest.skip("kernels: there is no C compiler")
    tables = RadialTables(_waves, r_max=3.0, n_elements=2, tolerance=1e-10)
    tables.kernel = kernel
    assert tables.error < 1e-10
    ends = torch.tensor([0, 1, 1, 0]), torch.tensor([1, 0, 1, 0])
    r = torch.tensor([0.31, 1.234, 2.5, 2.9], dtype=torch.float64, requires_grad=True)
    found, expected = tables(r, *ends)[0], _waves(r, *ends)[0]
    for tolerance in (1e-10, 1e-7, 1e-4):
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance * scale)
        found, expected = (
            torch.autograd.grad(x.square().sum(), r, create_graph=True)[0]
            for x in (found, expected)
        )
    assert torch.autograd.gradgradcheck(lambda x: tables(x, *ends)[0], (r,))
    tangent = torch.func.jvp(lambda x: tables(x, *ends)[0], (r,), (torch.ones_like(r),))[1]
    torch.testing.assert_close(
        tangent, torch.func.jacfwd(lambda x: _waves(x, *ends)[0])(r).sum(-1), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("options", CASES)
def test_models_with_tables_agree_and_have_right_forces(options, kernel, monkeypatch):
    monkeypatch.setattr("fpmace.blocks.radial_table.KNOTS", (256,))
    m, item = model(**options), structure()
    batch = batch_of(m, item)
    expected = derivatives(m, batch)
    assert "radial tables: largest error" in m.backbone.tabulate()
    use_kernels(m, kernel)
    found = derivatives(m, batch)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-8 * float(b.abs().max()))
    values = []
    for sign in (1.0, -1.0):
        positions = item["positions"].copy()
        positions[0, 1] += sign * STEP
        with torch.no_grad():
            moved = evaluate(m, {**item, "positions": np.asarray(positions)})
        values.append(float(moved.energy[0]))
    assert -(values[0] - values[1]) / (2 * STEP) == pytest.approx(float(found[1][0, 1]), abs=1e-6)


def test_tables_of_float32_have_its_precision():
    m, item = model(), structure()
    _, forces, _ = derivatives(m, batch_of(m, item))
    m = m.to(torch.float32)
    Inference(radial_tables=True).apply(m)
    _, low, _ = derivatives(m, batch_of(m, item).to(dtype=torch.float32))
    assert low.dtype == torch.float32
    scale = float(forces.abs().max())
    torch.testing.assert_close(low.double() / scale, forces / scale, rtol=0.0, atol=2e-5)


def test_what_has_no_tables_is_named(monkeypatch):
    m = model()
    monkeypatch.setattr(type(m.backbone.interactions[0]), "sees_elements", None)
    with pytest.raises(ConfigError, match=r"radial_tables: RealAgnostic.* no functions"):
        Inference(radial_tables=True).apply(m)
    with pytest.raises(ConfigError, match="radial_tables: a Linear model has no radial networks"):
        Inference(radial_tables=True).apply(torch.nn.Linear(1, 1))
    monkeypatch.setattr("fpmace.blocks.radial_table.LARGEST", 1000)
    with pytest.raises(ConfigError, match="radial_tables: 4 pairs of elements with 8 functions"):
        RadialTables(_waves, r_max=3.0, n_elements=2, tolerance=1e-10)
    with pytest.raises(ConfigError, match="edges_at_once: expects whole number at least 1, got 0"):
        Inference(edges_at_once=0)


@pytest.mark.parametrize(
    ("options", "tables", "kernel"),
    [(CASES[3], False, "torch"), (CASES[1], True, KERNELS[-1]), (CASES[4], True, "torch")],
)
def test_blocks_change_nothing(options, kernel, tables, monkeypatch):
    monkeypatch.setattr("fpmace.blocks.radial_table.KNOTS", (64,))
    m = model(**options)
    if tables:
        m.backbone.tabulate()
    use_kernels(m, kernel)
    batch = batch_of(m, structure(), structure(seed=3))
    results = []
    for edges_at_once in (None, 60):
        m.backbone.edges_at_once = edges_at_once
        results.append([*derivatives(m, batch), *_second(m, batch)])
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def _second(m, batch):
    """A row of the Hessian and the gradients of all weights of a force."""
    positions = batch.positions.clone().requires_grad_(True)
    energy = m(m.geometry(replace(batch, positions=positions))).energy
    (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    return torch.autograd.grad(slope[0, 0], [positions, *m.parameters()], materialize_grads=True)
