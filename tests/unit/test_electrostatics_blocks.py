"""Pieces of the electrostatics: harmonics, Boys function, norms, reciprocal vectors, padding."""

from __future__ import annotations

from math import pi, sqrt

import pytest
import torch
from e3nn.o3 import spherical_harmonics
from scipy.special import hyp1f1

from fpmace.electrostatics.boys import boys
from fpmace.electrostatics.gaussian import (
    feature_columns,
    kspace_cutoff,
    receiver_scale,
    self_overlap,
)
from fpmace.electrostatics.harmonics import pair_table, solid_harmonics
from fpmace.electrostatics.kspace import make_kvectors, reciprocal_cell, select_triples
from fpmace.electrostatics.plan import make_padding
from fpmace.electrostatics.realspace import pair_kernel


def test_solid_harmonics_are_those_of_the_permuted_vector() -> None:
    vectors = torch.randn(7, 3, dtype=torch.float64)
    reference = spherical_harmonics([0, 1, 2], vectors[:, [1, 2, 0]], False, "norm")
    torch.testing.assert_close(solid_harmonics(vectors, 2), reference)
    x, y, z = vectors.unbind(-1)
    torch.testing.assert_close(solid_harmonics(vectors, 2)[:, 4], sqrt(3) * x * y)
    torch.testing.assert_close(solid_harmonics(vectors, 1)[:, 1:], torch.stack([y, z, x], 1))


def test_boys_function_and_its_derivatives() -> None:
    t = torch.tensor([0.0, 1e-12, 0.3, 3.999, 4.001, 8.0, 30.0, 400.0], dtype=torch.float64)
    values = boys(t, 9)
    for n in range(10):
        expected = torch.tensor(hyp1f1(n + 0.5, n + 1.5, -t.numpy()) / (2 * n + 1))
        torch.testing.assert_close(values[n], expected, rtol=1e-12, atol=1e-300)
    t = t[:-1].clone().requires_grad_()
    (first,) = torch.autograd.grad(boys(t, 2).sum(), t, create_graph=True)
    torch.testing.assert_close(first, -boys(t, 3)[1:].sum(0))
    (second,) = torch.autograd.grad(first.sum(), t)
    torch.testing.assert_close(second, boys(t, 4)[2:].sum(0))
    assert torch.autograd.gradcheck(lambda s: boys(s, 2), (t + 0.1,), check_forward_ad=True)


def test_norms_of_the_specification() -> None:
    assert receiver_scale(0, 1.3) == pytest.approx(sqrt(4 * pi))
    assert receiver_scale(1, 1.3) == pytest.approx(pi * sqrt(1.5) * 1.3)
    for ell, width, value in (
        (0, 1.5, 19.1995271),
        (1, 1.5, 2.3154670),
        (0, 3.0, 12.1428472),
        (1, 3.0, 1.1715439),
    ):
        assert self_overlap(ell, 1.5, width, receiver=True) == pytest.approx(value, abs=1e-7)
    assert self_overlap(0, 1.5, 1.5, receiver=False) == pytest.approx(5.4160866, abs=1e-7)
    assert self_overlap(1, 1.5, 1.5, receiver=False) == pytest.approx(0.4011916, abs=1e-7)
    assert kspace_cutoff(1.5, 1, (1.5, 3.0)) == pytest.approx(2.7700749300260616)


def test_kernel_at_the_origin_is_the_overlap() -> None:
    sigma, width = 1.1, 1.8
    kernel = pair_kernel(torch.zeros(3, dtype=torch.float64), [sigma**2 + width**2], 2, 2)[0]
    overlaps = [
        self_overlap(ell, sigma, width, receiver=True) / receiver_scale(ell, width)
        for ell in (0, 1, 1, 1, 2, 2, 2, 2, 2)
    ]
    torch.testing.assert_close(kernel, torch.diag(torch.tensor(overlaps, dtype=torch.float64)))


def test_kernel_is_the_derivative_of_the_smeared_potential() -> None:
    """C_a(grad) C_b(-grad) by nested automatic differentiation of the (0, 0) entry."""
    variance = 1.7
    point = torch.tensor([0.4, -0.9, 1.3], dtype=torch.float64)

    def scalar(r: torch.Tensor) -> torch.Tensor:
        return pair_kernel(r, [variance], 0, 0)[0, 0, 0]

    hessian = torch.autograd.functional.hessian(scalar, point)
    kernel = pair_kernel(point, [variance], 1, 1)[0]
    order = [1, 2, 0]
    torch.testing.assert_close(kernel[1:, 1:], -hessian[order][:, order])
    assert pair_table(2, 2).max_order == 4


def test_feature_layout() -> None:
    columns = feature_columns(2, (1.0, 2.0))
    assert [c.ell for c in columns] == [0] * 2 + [1] * 6 + [2] * 10
    assert [c.width_index for c in columns[:8]] == [0, 1, 0, 0, 0, 1, 1, 1]
    assert [c.component for c in columns[2:8]] == [1, 2, 3, 1, 2, 3]


def test_half_set_of_reciprocal_vectors() -> None:
    cell = torch.tensor([[4.0, 0.3, 0.0], [0.0, 5.0, -0.7], [1.0, 0.0, 6.0]]).double()[None]
    triples, valid = select_triples(cell, 3.0)
    assert valid.all()
    axis = torch.arange(-6, 7).double()
    grid = torch.cartesian_prod(axis, axis, axis)
    reciprocal, volume = reciprocal_cell(cell)
    inside = (grid @ reciprocal[0]).norm(dim=1) <= 3.0
    found = {tuple(row) for row in torch.cat([triples[0], -triples[0]]).tolist()}
    assert found == {tuple(row) for row in grid[inside].tolist()} - {(0.0, 0.0, 0.0)}
    assert len(found) == 2 * triples.shape[1]
    torch.testing.assert_close(reciprocal[0] @ cell[0].T, 2 * pi * torch.eye(3).double())
    torch.testing.assert_close(volume[0], torch.linalg.det(cell[0]))


def test_padded_sets_equal_single_sets() -> None:
    cells = torch.stack([torch.eye(3).double() * a for a in (3.0, 8.0, 1.0)])
    together = make_kvectors(cells, 2.5, 0.1)
    for g in range(3):
        alone = make_kvectors(cells[g : g + 1], 2.5, 0.1)
        chosen = together.valid[g]
        torch.testing.assert_close(together.vectors[g][chosen], alone.vectors[0])
        torch.testing.assert_close(together.weight[g][chosen], alone.weight[0])
        assert (together.weight[g][~chosen] == 0).all()


@pytest.mark.parametrize("graphs", [None, [0, 2]])
@pytest.mark.parametrize("ptr", [[0, 2, 4, 6], [0, 1, 4, 6]])
def test_padding_round_trip(ptr: list[int], graphs: list[int] | None) -> None:
    padding = make_padding(ptr, graphs, torch.device("cpu"))
    values = torch.arange(12.0).view(6, 2)
    kept = values if padding.atoms is None else values[padding.atoms]
    padded = padding.pad(values)
    assert padded.shape[:2] == (padding.n_graphs, padding.n_max)
    assert torch.equal(padding.unpad(padded), kept)
    assert float(padded.sum()) == float(kept.sum())
