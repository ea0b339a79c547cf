"""GMRES in segments against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fpmace.scf.krylov import Segments, gmres

SIZES = [7, 1, 12]


def systems(seed: int = 0) -> tuple[list[Tensor], Tensor, Segments]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    matrices = [torch.eye(n, dtype=torch.float64) + 0.4 * random(n, n) for n in SIZES]
    index = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
    return matrices, random(sum(SIZES)), Segments(index, 3)


def applied(matrices: list[Tensor], vector: Tensor) -> Tensor:
    return torch.cat([m @ v for m, v in zip(matrices, vector.split(SIZES), strict=True)])


def test_every_segment_is_solved() -> None:
    matrices, right, segments = systems()
    found = gmres(lambda x: applied(matrices, x), right, segments, rtol=1e-12)
    expected = torch.block_diag(*matrices).inverse() @ right
    torch.testing.assert_close(found.solution, expected, rtol=1e-9, atol=1e-10)
    assert found.n_matvecs <= max(SIZES)
    assert (found.residual <= 1e-12 * 10).all()


def test_a_segment_alone_gives_the_same_as_in_company() -> None:
    matrices, right, segments = systems()
    together = gmres(lambda x: applied(matrices, x), right, segments, rtol=1e-3)
    alone = gmres(
        lambda x: matrices[2] @ x,
        right[-12:],
        Segments(torch.zeros(12, dtype=torch.int64), 1),
        rtol=1e-3,
    )
    torch.testing.assert_close(together.solution[-12:], alone.solution, rtol=1e-10, atol=1e-12)


def test_a_bad_segment_leaves_the_others_alone() -> None:
    matrices, right, segments = systems()
    good = gmres(lambda x: applied(matrices, x), right, segments, rtol=1e-10).solution
    matrices[0] = torch.full_like(matrices[0], torch.nan)
    found = gmres(lambda x: applied(matrices, x), right, segments, rtol=1e-10).solution
    torch.testing.assert_close(found[7:], good[7:], rtol=1e-10, atol=1e-12)


def test_one_system_is_solved_like_many() -> None:
    """One system takes a path of its own: the same numbers as twice that system."""
    matrices, right, _ = systems()
    single = Segments(torch.zeros(12, dtype=torch.int64), 1)
    double = Segments(torch.repeat_interleave(torch.arange(2), 12), 2)
    one = gmres(lambda x: matrices[2] @ x, right[-12:], single, rtol=1e-5)
    two = gmres(
        lambda x: torch.cat([matrices[2] @ v for v in x.split(12)]),
        right[-12:].repeat(2),
        double,
        rtol=1e-5,
    )
    assert one.n_matvecs == two.n_matvecs
    torch.testing.assert_close(two.solution, one.solution.repeat(2), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(two.residual, np.repeat(one.residual, 2), rtol=1e-4, atol=1e-20)
    bad = gmres(lambda x: matrices[2] @ x, right[-12:] * torch.nan, single, rtol=1e-5)
    assert bad.n_matvecs == 0
    assert not bad.solution.any()


def test_a_zero_right_hand_side_costs_nothing() -> None:
    matrices, right, segments = systems()
    found = gmres(lambda x: applied(matrices, x), torch.zeros_like(right), segments, rtol=1e-10)
    assert found.n_matvecs == 0
    assert not found.solution.any()


def test_the_floor_stops_early_and_the_limit_is_kept() -> None:
    matrices, right, segments = systems()
    loose = gmres(lambda x: applied(matrices, x), right, segments, rtol=0.0, floor=np.full(3, 0.5))
    assert (loose.residual <= 0.5).all()
    assert loose.n_matvecs < 12
    cut = gmres(lambda x: applied(matrices, x), right, segments, rtol=1e-14, max_iterations=4)
    assert cut.n_matvecs == 4


def test_the_residual_norm_is_the_true_one() -> None:
    matrices, right, segments = systems()
    found = gmres(lambda x: applied(matrices, x), right, segments, rtol=1e-2)
    left = right - applied(matrices, found.solution)
    norms = segments.dot(left, left).sqrt().numpy()
    np.testing.assert_allclose(found.residual, norms, atol=1e-12)


@pytest.mark.parametrize("consistent", [True, False])
def test_singular_systems_end(consistent: bool) -> None:
    matrix = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    right = torch.tensor([1.0, 1.0, 0.0 if consistent else 1.0], dtype=torch.float64)
    segments = Segments(torch.zeros(3, dtype=torch.int64), 1)
    found = gmres(lambda x: matrix @ x, right, segments, rtol=1e-10)
    assert torch.isfinite(found.solution).all()
    assert (found.residual[0] < 1e-10) == consistent
