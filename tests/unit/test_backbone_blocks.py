"""Contracts of the backbone's blocks."""

import itertools
from math import pi, sqrt

import e3nn
import numpy as np
import pytest
import torch
from e3nn import o3
from e3nn.o3 import Irreps

from fpmace.blocks.contraction_plan import contraction_plan
from fpmace.blocks.coupling import symmetric_coupling, wigner_3j
from fpmace.blocks.edges import EdgeLayout
from fpmace.blocks.embedding import NodeEmbedding
from fpmace.blocks.harmonics import SphericalHarmonics
from fpmace.blocks.interaction import RealAgnosticDensityResidualInteractionBlock
from fpmace.blocks.linear import MLP, ElementLinear, Linear, linear_function
from fpmace.blocks.product import EquivariantProductBasis
from fpmace.blocks.radial import BesselBasis, GaussianBasis, polynomial_cutoff
from fpmace.blocks.readout import NonLinearReadout, get_gate
from fpmace.blocks.symmetric_contraction import SymmetricContraction
from fpmace.errors import ConfigError


@pytest.mark.parametrize("degrees", list(itertools.product(range(4), repeat=3)))
def test_3j_tensors_couple_rotations_and_follow_the_sign_rule(degrees):
    l1, l2, l3 = degrees
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        return
    tensor = wigner_3j(*degrees)
    assert np.sum(tensor**2) == pytest.approx(1.0)
    angles = torch.tensor([0.3, 1.1, -0.7], dtype=torch.float64)
    d1, d2, d3 = (o3.wigner_D(l, *angles).numpy() for l in degrees)  # noqa: E741
    turned = np.einsum("abc,ia,jb,kc->ijk", tensor, d1, d2, d3)
    np.testing.assert_allclose(turned, tensor, atol=1e-6)  # e3nn's D has eight digits
    swapped = wigner_3j(l2, l1, l3).transpose(1, 0, 2)
    np.testing.assert_allclose(swapped, (-1) ** sum(degrees) * tensor, atol=1e-14)


def test_harmonics_follow_the_coupling_and_its_sign():
    directions = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=1)
    parts = SphericalHarmonics(5)(directions).split([2 * degree + 1 for degree in range(6)], dim=1)
    torch.testing.assert_close(parts[1], sqrt(3.0) * directions)
    for degree in range(1, 5):
        tensor = torch.from_numpy(wigner_3j(degree, 1, degree + 1).copy())
        raised = torch.einsum("ni,nj,ijk->nk", parts[degree], parts[1], tensor)
        raised = raised * sqrt(2 * degree + 3) / raised.norm(dim=1, keepdim=True)
        torch.testing.assert_close(parts[degree + 1], raised)


def test_degrees_beyond_the_harmonics_are_refused():
    with pytest.raises(ConfigError, match="max_ell: expected 0 to 12, got 13"):
        SphericalHarmonics(13)


def _functions_by_e3nn():
    torch.manual_seed(0)
    irreps = Irreps("2x0e+2x1o")
    element = torch.tensor([0, 1, 1])
    per_element = ElementLinear(irreps, Irreps("1x1o+3x0e"), 2)
    return {
        "harmonics": (SphericalHarmonics(4), torch.randn(4, 3, dtype=torch.float64)),
        "linear": (Linear(irreps, Irreps("2x0e+1x1o"), bias=True), torch.randn(3, 8).double()),
        "network": (MLP([3, 4, 2]), torch.randn(4, 3, dtype=torch.float64)),
        "elements": (lambda x: per_element(x, element), torch.randn(3, 8, dtype=torch.float64)),
    }


@pytest.mark.parametrize("name", ["harmonics", "linear", "network", "elements"])
def test_modules_of_e3nn_are_open_whatever_the_settings_of_the_process(name, monkeypatch):
    """Compiled code and half precision are the settings; transforms and three derivatives work."""
    before = torch.get_default_dtype()
    monkeypatch.setitem(e3nn._OPT_DEFAULTS, "jit_mode", "script")
    torch.set_default_dtype(torch.float16)
    try:
        linear_function.cache_clear()
        function, x = _functions_by_e3nn()[name]
        value = function(x)
    finally:
        torch.set_default_dtype(before)
        linear_function.cache_clear()
    assert e3nn.get_optimization_defaults()["jit_mode"] == "script"
    assert value.dtype == torch.float64
    rows = torch.func.vmap(lambda row: function(row.unsqueeze(0)).squeeze(0))
    if name != "elements":
        torch.testing.assert_close(rows(x), value)
    jacobian = torch.func.jacrev(function)(x)
    torch.testing.assert_close(torch.func.jacfwd(function)(x), jacobian)

    def second(x):
        def total(x):
            return function(x).sin().sum()

        return torch.func.grad(lambda x: torch.func.grad(total)(x).square().sum())(x)

    assert torch.autograd.gradcheck(second, x.requires_grad_(True), fast_mode=True)


@pytest.mark.parametrize("correlation", [1, 3])
def test_a_layer_turns_with_wigner_matrices(correlation):
    torch.manual_seed(0)
    node, target = Irreps("2x0e+2x1o"), Irreps("2x0e+2x1o+2x2e+2x3o")
    interaction = RealAgnosticDensityResidualInteractionBlock(
        node_irreps=node,
        edge_irreps=Irreps("0e+1o+2e+3o"),
        target_irreps=target,
        hidden_irreps=node,
        n_elements=2,
        n_edge_features=3,
        avg_num_neighbors=2.0,
        radial_MLP=[4],
    )
    product = EquivariantProductBasis(
        node_irreps=target, out_irreps=node, correlation=correlation, n_elements=2
    )
    element = torch.tensor([0, 1, 1])
    edges = EdgeLayout.build(torch.tensor([[1, 2, 0, 0], [0, 0, 1, 2]]), 3)
    feats, radial = torch.randn(3, 8, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    vectors = torch.nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=1)

    def layer(feats, vectors):
        message, skip = interaction(feats, element, SphericalHarmonics(3)(vectors), radial, edges)
        return product(message, skip, element)

    rotation = o3.rand_matrix(dtype=torch.float64)
    for matrix in (rotation, -rotation):
        turn = node.D_from_matrix(matrix)
        found = layer(feats @ turn.T, vectors @ matrix.T)
        # e3nn's matrices have eight digits
        torch.testing.assert_close(found, layer(feats, vectors) @ turn.T, rtol=0.0, atol=1e-6)


def test_bessel_and_gaussian_bases():
    r = torch.tensor([0.7, 2.9], dtype=torch.float64)
    n = torch.arange(1, 4, dtype=torch.float64)
    expected = sqrt(2 / 3.5) * torch.sin(n * pi * r[:, None] / 3.5) / r[:, None]
    torch.testing.assert_close(BesselBasis(r_max=3.5, n_basis=3)(r), expected)
    gaussian = GaussianBasis(r_max=3.5, n_basis=3)(torch.tensor([1.75], dtype=torch.float64))
    edge = np.exp(-0.5)
    np.testing.assert_allclose(gaussian[0].numpy() / np.exp(0.0), [edge, 1.0, edge])


def test_cutoff_vanishes_with_two_derivatives():
    r = torch.tensor(4.0 - 1e-5, dtype=torch.float64, requires_grad=True)
    value = polynomial_cutoff(r, 4.0, 5)
    (first,) = torch.autograd.grad(value, r, create_graph=True)
    (second,) = torch.autograd.grad(first, r)
    assert abs(float(value.detach())) < 1e-12
    assert abs(float(first.detach())) < 1e-7
    assert abs(float(second)) < 1e-2
    assert float(polynomial_cutoff(torch.tensor(4.5), 4.0, 5)) == 0.0
    assert float(polynomial_cutoff(torch.tensor(0.0), 4.0, 5)) == 1.0


def test_edges_are_paired_with_their_reverse():
    edge_index = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 0, 1]])
    shifts = torch.tensor([[1, 0, 0], [-1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]])
    edges = EdgeLayout.build(edge_index, 2, shifts.to(torch.float64))
    pair = edges.pair.tolist()
    assert pair[0] == pair[1]
    assert pair[2] == pair[4]
    assert pair[3] not in pair[:3]
    assert len(edges.representative) == 3
    assert edges.pair[edges.representative].tolist() == [0, 1, 2]


def test_without_shifts_each_edge_is_its_own():
    edges = EdgeLayout.build(torch.tensor([[0, 1], [1, 0]]).flip(1), 2)
    assert edges.pair.tolist() == [0, 1]


def test_slots_hold_each_edge_once_with_its_sender():
    torch.manual_seed(0)
    receiver = torch.sort(torch.randint(0, 40, (300,))).values
    edge_index = torch.stack([torch.randint(0, 40, (300,)), receiver])
    edges = EdgeLayout.build(edge_index, 45, torch.zeros(300, 3))
    filled = edges.slots.edge < 300
    assert sorted(edges.slots.edge[filled].tolist()) == list(range(300))
    assert (edges.slots.sender[filled] == edges.sender[edges.slots.edge[filled]]).all()
    for limit in (1024, 20):
        seen = 0
        for chunk in edges.slots.pieces(limit):
            atoms = edges.slots.atom_order[chunk.first : chunk.last]
            table = edges.slots.edge[chunk.slots].view(len(atoms), chunk.width)
            for atom, row in zip(atoms, table, strict=True):
                members = row[row < 300]
                assert (edges.receiver[members] == atom).all()
                seen += len(members)
        assert seen == 300


@pytest.mark.parametrize(("max_ell", "max_L", "correlation"), [(3, 1, 3), (2, 2, 2), (1, 0, 4)])
def test_contraction_is_the_sum_over_all_couplings(max_ell, max_L, correlation):
    torch.manual_seed(0)
    block = SymmetricContraction(max_ell, max_L, correlation, 2, 3)
    a = torch.randn(4, 3, (max_ell + 1) ** 2, dtype=torch.float64)
    element = torch.tensor([1, 0, 0, 1])
    found = block(a, element)
    for out_l in range(max_L + 1):
        expected = torch.zeros(4, 3, 2 * out_l + 1, dtype=torch.float64)
        for degree in range(1, correlation + 1):
            coupling = symmetric_coupling(max_ell, out_l, degree)
            product = a[..., coupling.monomials].prod(-1)
            weight = block.contractions[out_l].weight(degree)[element]
            values = torch.from_numpy(coupling.values.copy())
            expected += torch.einsum("nut,mtk,nku->num", product, values, weight)
        torch.testing.assert_close(found[..., out_l**2 : (out_l + 1) ** 2], expected)


def test_number_of_terms_at_max_ell_3():
    plan = contraction_plan(3, 1, 3)
    assert sum(len(terms) for terms in plan.terms.values()) == 410


def test_linear_with_bias_shifts_scalars_only():
    block = Linear(Irreps("3x0e+2x1o"), Irreps("2x0e+1x1o"), bias=True)
    assert block.bias is not None
    assert block.bias.shape == (2,)
    with torch.no_grad():
        block.bias.copy_(torch.tensor([1.0, 2.0]))
    out = block(torch.zeros(4, 9, dtype=torch.float64))
    assert out[0].tolist() == [1.0, 2.0, 0.0, 0.0, 0.0]


def test_mlp_is_hidden_part_and_last_layer():
    mlp = MLP([3, 5, 2])
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(mlp(x), mlp.hidden(x) @ mlp.last_weight())
    assert set(dict(mlp.named_parameters())) == {"layer0.weight", "layer1.weight"}


def test_blocks_ignore_the_default_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        block = SymmetricContraction(2, 1, 2, 2, 3)
        embedding = NodeEmbedding(2, 3)
        harmonics = SphericalHarmonics(3)
    finally:
        torch.set_default_dtype(before)
    floats = [*block.parameters(), *embedding.parameters(), *harmonics.buffers()]
    floats += [buffer for buffer in block.buffers() if buffer.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.float64}


def test_unknown_gate_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"gate: no activation named 'sillu'.*'silu'.*tanh"):
        get_gate("sillu")
    assert get_gate(None)(torch.tensor(2.0)) == 2.0


def test_readout_takes_scalars_only():
    with pytest.raises(ConfigError, match="MLP_irreps: only scalars"):
        NonLinearReadout(Irreps("4x0e"), Irreps("4x1o"), "silu")
