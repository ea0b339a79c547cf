"""The implicit function theorem on a small bent map: gradcheck, gradgradcheck, policies."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from fixed_point_cases import batch_of, make_mode, observe, scaled_model, structure, with_reference
from torch import Tensor
from toy_training import toy_batch

from fpmace.differentiation.implicit import ImplicitDifferentiation, inverse
from fpmace.errors import ConfigError, ScfError
from fpmace.registry import build
from fpmace.scf.driver import solve
from fpmace.scf.jacobian_solve import JacobianSolve
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState, ScfStatus

N_ATOMS, N_LM = 2, 2
SIZE = N_ATOMS * N_LM


class _Line:
    """J and t of the map below."""

    def __init__(self, jacobian: Tensor, response: Tensor, cheap_dense: bool) -> None:
        self._jacobian = jacobian
        self.fermi_response = response.view(N_ATOMS, N_LM)
        self.cheap_dense = cheap_dense

    def apply(self, tangent: Tensor) -> Tensor:
        return (self._jacobian @ tangent.flatten()).view_as(tangent)

    def apply_transpose(self, cotangent: Tensor) -> Tensor:
        return (self._jacobian.T @ cotangent.flatten()).view_as(cotangent)

    def dense(self) -> Tensor:
        return self._jacobian[None]


def bent_problem(
    theta: Tensor, *, charge: float | None, dense: bool = True, graphs: int = 1
) -> FixedPointProblem:
    """G(x, mu) = sin(A x + b mu) + c with A, b, c made of theta; one graph of two atoms."""
    matrix = torch.linspace(-0.6, 0.5, SIZE * SIZE, dtype=torch.float64).view(SIZE, SIZE)
    pattern = torch.cos(3.0 * torch.arange(SIZE, dtype=torch.float64))

    def pieces(density: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        drive = -(1.0 + 0.2 * theta[1]) * torch.ones(SIZE, dtype=torch.float64)
        inner = (1.0 + theta[0]) * (matrix.T @ density.flatten())
        return inner + drive * level.repeat_interleave(N_LM), drive

    def evaluate(density: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        inner, _ = pieces(density, level)
        return (torch.sin(inner) + theta[2] * pattern).view(N_ATOMS, N_LM), density

    def linearise(density: Tensor, level: Tensor) -> _Line:
        with torch.no_grad():
            inner, drive = pieces(density, level)
            slope = torch.cos(inner)
            jacobian = slope[:, None] * (1.0 + theta[0]) * matrix.T
            return _Line(jacobian.detach(), (slope * drive).detach(), dense)

    return FixedPointProblem(
        evaluate=evaluate,
        features=lambda density, level: density,
        linearise=linearise,
        local_density=torch.zeros(N_ATOMS, N_LM, dtype=torch.float64),
        batch=torch.zeros(N_ATOMS, dtype=torch.int64),
        atoms_per_graph=torch.tensor([N_ATOMS]),
        target_charge=None if charge is None else torch.tensor([charge], dtype=torch.float64),
        is_affine=False,
    )


def solution(
    theta: Tensor, order: int, charge: float | None, dense: bool
) -> tuple[Tensor, Tensor]:
    """The fixed point as a function of theta."""
    options = ScfOptions(
        solver="newton_krylov",
        scf_tolerance=1e-14,
        charge_tolerance=1e-13,
        on_failure="ignore",
        constant_charge=charge is not None,
    )
    problem = bent_problem(theta, charge=charge, dense=dense)
    with torch.no_grad():
        start = ScfState(problem.local_density, torch.full((1,), 0.1, dtype=torch.float64))
        found = solve(problem, start, options)
    assert float(found.density_change.max()) < 1e-12
    state = ImplicitDifferentiation(linear_tolerance=1e-13).reattach(
        problem, ScfState(found.density, found.fermi_level), order
    )
    return state.density, state.fermi_level


THETA = torch.tensor([0.1, -0.3, 0.4], dtype=torch.float64)


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "gmres"])
@pytest.mark.parametrize("charge", [None, 0.2], ids=["fermi", "charge"])
def test_first_and_second_derivatives_are_exact(charge: float | None, dense: bool) -> None:
    theta = THETA.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: solution(x, 1, charge, dense), (theta,))
    assert torch.autograd.gradgradcheck(lambda x: solution(x, 2, charge, dense), (theta,))


def test_one_correction_gives_no_exact_second_derivative() -> None:
    theta = THETA.clone().requires_grad_()
    assert not torch.autograd.gradgradcheck(
        lambda x: solution(x, 1, 0.2, True), (theta,), raise_exception=False
    )


def test_three_corrections_give_third_derivatives() -> None:
    def second(x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        value = solution(x, 3, 0.2, True)[0].square().sum()
        (first,) = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad(first.sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, (THETA.clone().requires_grad_(),), atol=1e-4)


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "gmres"])
@pytest.mark.parametrize("charge", [None, 0.2], ids=["fermi", "charge"])
def test_linear_solves_are_differentiable_in_their_right_hand_side(
    charge: float | None, dense: bool
) -> None:
    problem = bent_problem(THETA, charge=charge, dense=dense)
    line = problem.linearise(0.3 + problem.local_density, torch.full((N_ATOMS,), 0.2))
    response = JacobianSolve(problem, line, rtol=1e-13)
    assert response.is_dense == dense
    a = torch.rand(N_ATOMS, N_LM, dtype=torch.float64, requires_grad=True)
    e = torch.rand(1, dtype=torch.float64, requires_grad=True)
    for transpose in (False, True):
        function = partial(inverse, response, transpose=transpose)
        assert torch.autograd.gradcheck(function, (a, e))
        assert torch.autograd.gradgradcheck(function, (a, e))


def test_an_adjoint_solve_that_gives_up_says_so() -> None:
    problem = bent_problem(THETA, charge=None, dense=False)
    line = problem.linearise(0.3 + problem.local_density, torch.full((N_ATOMS,), 0.2))
    covector = torch.rand(N_ATOMS, N_LM, dtype=torch.float64)
    short = JacobianSolve(problem, line, rtol=1e-12, max_iterations=1)
    with pytest.warns(RuntimeWarning, match="derivatives of 1 structure"):
        short.solve_transpose(covector, torch.zeros(1, dtype=torch.float64))


def saved_bytes(mode_name: str, mixing: float) -> tuple[int, int]:
    """Bytes that autograd keeps for energy and forces, and the SCF steps taken."""
    model, batch = scaled_model("affine", eigenvalue=-0.3), batch_of(structure(n_molecules=1))
    mode = make_mode(
        mode_name,
        solver="linear",
        scf_tolerance=1e-6,
        mixing_parameter=mixing,
        constant_charge=False,
    )
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = observe(model, batch, mode)
    assert found.scf is not None
    return kept, int(found.scf.n_steps.max())


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    few, few_steps = saved_bytes("scf", 0.8)
    many, many_steps = saved_bytes("scf", 0.1)
    assert many_steps > 5 * few_steps
    assert many == few
    assert saved_bytes("unroll_scf", 0.1)[0] > 1.3 * saved_bytes("unroll_scf", 0.8)[0]


HOPELESS = {"num_scf_steps": 3, "solver": "linear", "on_failure": "ignore"}


def test_unconverged_steps_raise_on_request() -> None:
    model, batch = scaled_model(), batch_of(structure())
    mode = make_mode("implicit", on_unconverged="raise", **HOPELESS)
    with pytest.raises(ScfError, match="SCF not converged in training"):
        observe(model, batch, mode, create_graph=True)


def test_unconverged_steps_fall_back_to_an_unrolled_loop_on_request() -> None:
    model = scaled_model("mlp", eigenvalue=-0.4)
    atoms = [structure(n_molecules=n, seed=s) for n, s in ((2, 3), (1, 4))]
    batch = batch_of(*atoms)
    mode = make_mode("implicit", on_unconverged="unroll", unroll_steps=4, **HOPELESS)
    found = observe(model, batch, mode, create_graph=True)
    expected = observe(
        model,
        batch,
        make_mode("unroll_scf", **{**HOPELESS, "num_scf_steps": 5}),
        create_graph=True,
    )
    assert found.scf is not None
    assert found.scf.n_unconverged == 2
    assert found.scf.fallback is not None
    assert found.scf.fallback.all()
    assert found.scf.usable.all()
    torch.testing.assert_close(found.density, expected.density)
    assert found.density is not None
    assert expected.density is not None
    weight = model.field_dependent_charges_map.element_select_out.weight
    rows = [
        torch.autograd.grad(item.density.square().sum(), weight, retain_graph=True)[0]
        for item in (found, expected)
        if item.density is not None
    ]
    torch.testing.assert_close(rows[0], rows[1])


def test_only_the_graphs_that_failed_fall_back() -> None:
    model = scaled_model("mlp", eigenvalue=-0.8)
    with torch.no_grad():
        probe = batch_of(structure(n_molecules=1, seed=4), structure(n_molecules=3))
        result = observe(model, probe, make_mode("scf", solver="anderson"), ("energy",)).scf
    assert result is not None
    quick, slow = result.n_steps.tolist()
    if quick == slow:
        pytest.skip("both structures take equally many steps")
    limit = min(quick, slow) + 1
    mode = make_mode(
        "implicit",
        solver="anderson",
        num_scf_steps=limit,
        on_unconverged="unroll",
        on_failure="ignore",
    )
    found = observe(model, probe, mode, create_graph=True)
    assert found.scf is not None
    assert found.scf.fallback is not None
    assert found.scf.fallback.tolist() == [quick > slow, slow > quick]


def test_noise_on_the_reference_is_for_training_only_and_adds_no_charge() -> None:
    model = scaled_model("affine")
    batch = with_reference(batch_of(structure(), structure(n_molecules=1)))
    quiet, noisy = make_mode("direct"), make_mode("direct", mode={"density_noise": 0.05})
    plain = observe(model, batch, quiet, ("energy",))
    torch.testing.assert_close(observe(model, batch, noisy, ("energy",)).density, plain.density)
    torch.manual_seed(3)
    first = observe(model, batch, noisy, ("energy",), create_graph=True)
    second = observe(model, batch, noisy, ("energy",), create_graph=True)
    torch.manual_seed(3)
    again = observe(model, batch, noisy, ("energy",), create_graph=True)
    assert first.density is not None
    assert second.density is not None
    assert not torch.allclose(first.density, second.density)
    torch.testing.assert_close(again.density, first.density)
    problem = bent_problem(THETA, charge=None)
    reference = ScfState(problem.local_density, torch.zeros(1, dtype=torch.float64))
    shaken = noisy.training_reference(reference, problem, toy_batch([len(problem.batch)]))
    assert float(shaken.density[:, 0].sum()) == pytest.approx(0.0, abs=1e-14)
    assert float(shaken.density.abs().max()) > 0.0


@pytest.mark.parametrize(
    ("mode", "scf", "message"),
    [
        ({"type": "direct", "density_noise": -1.0}, None, "expects number at least 0, got -1.0"),
        ({"type": "implicit", "order": 3}, {}, "expects 1 or 2 or None, got 3"),
        ({"type": "unroll_scf"}, {"solver": "anderson"}, "unroll_scf cannot differentiate"),
    ],
)
def test_refusals(mode: dict[str, object], scf: dict[str, object] | None, message: str) -> None:
    context = {} if scf is None else {"scf": ScfOptions(**scf)}  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        build("training_mode", mode, **context)


def test_a_lost_structure_gives_the_others_their_derivatives() -> None:
    model = scaled_model("mlp", "realspace", eigenvalue=-0.4)
    batch = batch_of(*[structure("realspace", n_molecules=1, seed=s) for s in (3, 4)])
    good = observe(model, batch, make_mode("scf"))
    positions = batch.positions.clone()
    positions[3:] = torch.nan
    mode = make_mode("scf", on_failure="ignore")
    found = observe(model, replace(batch, positions=positions), mode)
    assert found.scf is not None
    assert found.scf.status.tolist() == [0, int(ScfStatus.NONFINITE)]
    assert good.forces is not None
    assert found.forces is not None
    torch.testing.assert_close(found.forces[:3], good.forces[:3], rtol=0, atol=1e-10)
