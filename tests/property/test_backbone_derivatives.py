"""Derivatives of energies against finite differences, and of the kernels against autograd."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from backbone_cases import INTERACTIONS, batch_of, derivatives, evaluate, model, structure
from e3nn.o3 import Irreps

from fpmace.blocks.convolution_terms import KERNELS, convolve, kernel_of
from fpmace.blocks.edges import EdgeLayout
from fpmace.blocks.interaction import RealAgnosticDensityResidualInteractionBlock
from fpmace.blocks.product import EquivariantProductBasis
from fpmace.errors import ConfigError
from fpmace.kernels import choice, compiler
from fpmace.testing.convolution import check_kernel, convolution_case, dense_convolution

STEP = 1e-4


def _energy(m, item):
    with torch.no_grad():
        return float(evaluate(m, item).energy[0])


@pytest.mark.parametrize("block", INTERACTIONS)
def test_forces_and_stress_are_the_derivative_of_the_energy(block):
    m = model(interaction_cls=block, interaction_cls_first=block)
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


def _dense_products():
    """The four products by plain sums over edges; three are gradients of the message."""

    def zeros(plan, wanted, like):
        segments = [segment for group in plan.groups for segment in group.segments]
        n_paths = max(segment.weight.stop for segment in segments)
        n_components = max(segment.node.stop for segment in segments)
        return (
            like.new_zeros(len(plan.edges.representative), n_paths, 2),
            like.new_zeros(plan.edges.n_atoms, n_components, 2),
            like.new_zeros(plan.edges.n_edges, 16),
        )[wanted]

    def gradient(wanted):
        def product(plan, *operands):
            *others, f = operands
            others.insert(wanted, zeros(plan, wanted, f))
            return torch.func.vjp(lambda *x: dense_convolution(plan, *x), *others)[1](f)[wanted]

        return product

    return [gradient(0), gradient(1), gradient(2), dense_convolution]


@pytest.mark.parametrize("name", [*KERNELS, "products"])
def test_kernels_of_the_convolution_fulfil_the_contract(name, monkeypatch):
    assert choice  # enters the compiled kernels
    if name == "c" and compiler.find_compiler() is None:
        pytest.skip("kernels: there is no C compiler")
    if name not in KERNELS:
        monkeypatch.setitem(KERNELS, name, kernel_of(_dense_products()))
    else:
        check_kernel(name, torch.float32)
    check_kernel(name)


def test_unknown_kernel_names_the_known_ones():
    plan, operands = convolution_case()
    with pytest.raises(ConfigError, match="kernel: no convolution named 'trch'"):
        convolve(*operands, plan, "trch")


def test_convolution_has_right_derivatives():
    plan, operands = convolution_case()
    operands = [x.requires_grad_(True) for x in operands]

    def function(*tensors):
        return convolve(*tensors, plan)

    assert torch.autograd.gradcheck(function, operands, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, operands, fast_mode=True)

    def gradient(r, h, y):
        message = function(r, h, y)
        return torch.autograd.grad(message.square().sum(), (r, h), create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, operands, fast_mode=True)


@pytest.mark.parametrize(("max_ell", "max_L", "correlation"), [(2, 1, 2), (1, 2, 3), (1, 0, 1)])
def test_contraction_has_two_right_derivatives(max_ell, max_L, correlation):
    from fpmace.blocks.symmetric_contraction import SymmetricContraction

    torch.manual_seed(0)
    block = SymmetricContraction(max_ell, max_L, correlation, 3, 2)
    element = torch.tensor([2, 0, 2, 0])
    names = [name for name, _ in block.named_parameters()]
    weights = [value.detach().clone().requires_grad_(True) for value in block.parameters()]

    def function(a, *values):
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(block, state, (a, element))

    operands = (_random(4, 2, (max_ell + 1) ** 2), *weights)
    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


def _layer():
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
    )
    product = EquivariantProductBasis(
        node_irreps=target, out_irreps=node, correlation=2, n_elements=2
    )
    element = torch.tensor([0, 1, 1, 0, 1])

    def function(node_feats, edge_attrs, edge_feats):
        message, skip = interaction(node_feats, element, edge_attrs, edge_feats, _layout())
        return product(message, skip, element)

    return function


def test_layers_are_open_to_functional_transforms():
    torch.manual_seed(1)
    feats, direction = torch.randn(2, 5, 12, dtype=torch.float64)
    attrs, radial = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    layer = _layer()

    def function(x):
        return layer(x, attrs, radial)

    def differences(f):
        return (f(feats + 1e-5 * direction) - f(feats - 1e-5 * direction)) / 2e-5

    def push(f):
        return torch.func.jvp(f, (feats,), (direction,))[1]

    def pull(x):
        return torch.func.grad(lambda x: function(x).square().sum())(x)

    def pull_twice(x):
        return torch.func.grad(lambda x: pull(x).sin().sum())(x)

    for f in (function, pull, pull_twice):
        torch.testing.assert_close(push(f), differences(f), rtol=1e-6, atol=1e-5)
    both = torch.stack([feats, direction])
    torch.testing.assert_close(
        torch.func.vmap(function)(both), torch.stack([function(feats), function(direction)])
    )
    jacobian = torch.func.jacrev(function)(feats)
    torch.testing.assert_close(torch.einsum("abcd,cd->ab", jacobian, direction), push(function))
