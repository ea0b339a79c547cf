"""Derivatives of energies against finite differences, and of the kernels against autograd."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from backbone_cases import INTERACTIONS, batch_of, derivatives, evaluate, model, structure
from e3nn.o3 import Irreps

from fpmace.blocks.convolution import EdgeConvolution
from fpmace.blocks.convolution_kernel import convolve
from fpmace.blocks.convolution_terms import Convolution
from fpmace.blocks.edges import EdgeLayout
from fpmace.blocks.interaction import RealAgnosticDensityResidualInteractionBlock
from fpmace.blocks.product import EquivariantProductBasis
from fpmace.models.mace import MACE, ScaleShiftMACE

STEP = 1e-4


def _energy(m, item):
    with torch.no_grad():
        return float(evaluate(m, item).energy[0])


@pytest.mark.parametrize("block", INTERACTIONS)
@pytest.mark.parametrize("kind", [MACE, ScaleShiftMACE])
def test_forces_and_stress_are_the_derivative_of_the_energy(kind, block):
    m = model(kind, interaction_cls=block, interaction_cls_first=block)
    item = structure()
    _, forces, stress = derivatives(m, batch_of(m, item))
    volume = abs(np.linalg.det(item["cell"]))
    for atom, axis in ((0, 1), (4, 2)):
        values = []
        for sign in (1.0, -1.0):
            positions = item["positions"].copy()
            positions[atom, axis] += sign * STEP
            values.append(_energy(m, {**item, "positions": positions}))
        assert -(values[0] - values[1]) / (2 * STEP) == pytest.approx(
            float(forces[atom, axis]), abs=1e-6
        )
    for i, j in ((0, 0), (1, 2)):
        values = []
        for sign in (1.0, -1.0):
            strain = np.zeros((3, 3))
            strain[i, j] += 0.5 * sign * STEP
            strain[j, i] += 0.5 * sign * STEP
            change = np.eye(3) + strain
            moved = {
                **item,
                "positions": item["positions"] @ change,
                "cell": item["cell"] @ change,
            }
            values.append(_energy(m, moved))
        expected = (values[0] - values[1]) / (2 * STEP) / volume
        assert expected == pytest.approx(float(stress[0, i, j]), abs=1e-6)
    torch.testing.assert_close(stress, stress.transpose(1, 2))


@pytest.mark.parametrize("block", INTERACTIONS)
def test_parameter_gradients_of_a_force_loss(block):
    m = model(interaction_cls=block, interaction_cls_first=block, hidden_irreps="2x0e+2x1o")
    batch = batch_of(m, structure(0, 4), structure(1, 3, periodic=False))
    target = torch.linspace(-1.0, 1.0, batch.n_atoms * 3, dtype=torch.float64).view(-1, 3)

    def loss():
        positions = batch.positions.clone().requires_grad_(True)
        energy = m(m.geometry(replace(batch, positions=positions))).energy
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return energy.square().sum() + (gradient + target).square().sum()

    loss().backward()
    for name, parameter in m.named_parameters():
        if parameter.numel() == 0:
            continue
        flat = parameter.data.view(-1)
        place = parameter.numel() // 2
        found = 0.0 if parameter.grad is None else float(parameter.grad.view(-1)[place])
        values = []
        for sign in (1.0, -1.0):
            flat[place] += sign * STEP
            values.append(float(loss().detach()))
            flat[place] -= sign * STEP
        expected = (values[0] - values[1]) / (2 * STEP)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), name


def test_energy_is_smooth_where_a_neighbour_enters():
    m = model()
    pair = {
        "numbers": np.array([1, 8]),
        "cell": np.zeros((3, 3)),
        "pbc": np.array([False] * 3),
    }

    def slope(distance):
        positions = np.array([[0.0, 0.0, 0.0], [0.3 * distance, 0.0, distance * 0.91**0.5]])
        _, forces, _ = derivatives(m, batch_of(m, {**pair, "positions": positions}))
        return forces

    assert slope(m.r_max - 1e-4).abs().max() < 1e-6
    assert slope(m.r_max + 1e-4).abs().max() == 0.0
    inside = _energy(m, {**pair, "positions": np.array([[0.0, 0, 0], [0, 0, m.r_max - 1e-4]])})
    outside = _energy(m, {**pair, "positions": np.array([[0.0, 0, 0], [0, 0, m.r_max + 1e-4]])})
    assert inside == pytest.approx(outside, abs=1e-10)


def test_float32_agrees_with_float64():
    m = model()
    item = structure()
    energy, forces, stress = derivatives(m, batch_of(m, item))
    low = derivatives(m.to(torch.float32), batch_of(m, item).to(dtype=torch.float32))
    assert all(value.dtype == torch.float32 for value in low)
    scale = float(forces.abs().max())
    torch.testing.assert_close(low[0].double(), energy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(low[1].double() / scale, forces / scale, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(low[2].double() / scale, stress / scale, rtol=0.0, atol=1e-5)


def _layout():
    edge_index = torch.tensor([[1, 2, 0, 0, 3], [0, 0, 1, 2, 2]])
    return EdgeLayout.build(edge_index, 5, torch.zeros(5, 3))


def _random(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_convolution_kernel_has_two_right_derivatives():
    torch.manual_seed(0)
    block = EdgeConvolution(
        Irreps("2x0e+2x1o"), Irreps("1x0e+1x1o+1x2e"), Irreps("2x0e+2x1o+2x2e")
    )
    edges = _layout()
    plan = Convolution(edges, block.groups, block.n_rows, len(block.paths))
    operands = (
        _random(len(edges.representative), 3),
        _random(3, 2 * len(block.paths)),
        _random(5, 4, 2),
        _random(5, 9),
    )

    def function(*tensors):
        return convolve(*tensors, plan)

    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)

    # The gradient of the first three operands alone, as in a force loss without weights.
    def partial(*tensors):
        return convolve(tensors[0], operands[1].detach(), *tensors[1:], plan)

    assert torch.autograd.gradgradcheck(partial, (operands[0], operands[2], operands[3]))


@pytest.mark.parametrize(("max_ell", "max_L", "correlation"), [(2, 1, 2), (1, 2, 3), (1, 0, 1)])
def test_contraction_has_two_right_derivatives(max_ell, max_L, correlation):
    from fpmace.blocks.symmetric_contraction import SymmetricContraction

    torch.manual_seed(0)
    block = SymmetricContraction(max_ell, max_L, correlation, 3, 2, fused=True)
    element = torch.tensor([2, 0, 2, 0])
    names = [name for name, _ in block.named_parameters()]
    weights = [value.detach().clone().requires_grad_(True) for value in block.parameters()]

    def function(a, *values):
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(block, state, (a, element))

    operands = (_random(4, 2, (max_ell + 1) ** 2), *weights)
    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


def _layer(fused):
    torch.manual_seed(0)
    node, target = Irreps("3x0e+3x1o"), Irreps("3x0e+3x1o+3x2e")
    interaction = RealAgnosticDensityResidualInteractionBlock(
        node_irreps=node,
        edge_irreps=Irreps("1x0e+1x1o+1x2e"),
        target_irreps=target,
        hidden_irreps=node,
        n_elements=2,
        n_edge_features=4,
        avg_num_neighbors=3.0,
        radial_MLP=[5],
        fused=fused,
    )
    product = EquivariantProductBasis(
        node_irreps=target, out_irreps=node, correlation=2, n_elements=2, fused=fused
    )
    element = torch.tensor([0, 1, 1, 0, 1])

    def function(node_feats, edge_attrs, edge_feats):
        message, skip = interaction(node_feats, element, edge_attrs, edge_feats, _layout())
        return product(message, skip, element)

    return function


def test_fused_and_plain_layers_agree_with_their_gradients():
    torch.manual_seed(1)
    operands = (_random(5, 12), _random(5, 9), _random(5, 4))
    with torch.no_grad():
        operands[2][2:4] = operands[2][[0, 1]]  # both directions of a bond share the distance
    out, gradients = [], []
    for fused in (True, False):
        value = _layer(fused)(*operands)
        gradient = torch.autograd.grad(value.square().sum(), operands, create_graph=True)
        out.append(value)
        gradients.append(gradient)
    torch.testing.assert_close(out[0], out[1])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_plain_layers_are_open_to_functional_transforms():
    torch.manual_seed(1)
    feats, direction = torch.randn(2, 5, 12, dtype=torch.float64)
    attrs, radial = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    layer = _layer(False)

    def function(x):
        return layer(x, attrs, radial)

    value, tangent = torch.func.jvp(function, (feats,), (direction,))
    expected = (function(feats + 1e-5 * direction) - function(feats - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-6)
    _, pull = torch.func.vjp(function, feats)
    (gradient,) = pull(torch.ones_like(value))
    torch.testing.assert_close((gradient * direction).sum(), tangent.sum())
    third = torch.func.jvp(
        lambda x: torch.func.vjp(function, x)[1](torch.ones_like(value))[0], (feats,), (direction,)
    )[1]
    assert torch.isfinite(third).all()
