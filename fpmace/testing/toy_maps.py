"""Fixed-point problems of small matrices, on which solvers and differentiation are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpmace.parts import import_builtin_parts
from fpmace.registry import PartConfig
from fpmace.scf.driver import solve
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfResult, ScfState

N_LM = 4


@dataclass
class Toy:
    """One graph: G(x, mu) = b + J x + t mu + bend tanh(x), charges in every fourth component.

    Attributes:
        jacobian: J [n, n], n = 4 n_atoms.
        response: t [n].
        constant: b [n].
        bend: 0 for an affine map.
    """

    jacobian: Tensor
    response: Tensor
    constant: Tensor
    bend: float = 0.0

    @property
    def n_atoms(self) -> int:
        return self.constant.shape[0] // N_LM

    def value(self, x: Tensor, level: Tensor) -> Tensor:
        """G at a density [n] and a Fermi level []."""
        linear = self.constant + self.jacobian @ x + self.response * level
        return linear + self.bend * torch.tanh(x)

    def derivative(self, x: Tensor) -> Tensor:
        """[n, n] derivative of G by the density."""
        return self.jacobian + torch.diag(self.bend * (1.0 - torch.tanh(x) ** 2))


def random_toy(
    n_atoms: int = 3,
    *,
    eigenvalues: tuple[float, float] = (-0.5, 0.3),
    seed: int = 0,
    bend: float = 0.0,
    response: float = -0.5,
) -> Toy:
    """A graph whose J has real eigenvalues spread over the range given."""
    generator = torch.Generator().manual_seed(seed)
    n = n_atoms * N_LM
    vectors = torch.eye(n, dtype=torch.float64) + 0.3 * torch.randn(
        n, n, generator=generator, dtype=torch.float64
    )
    values = torch.linspace(eigenvalues[0], eigenvalues[1], n, dtype=torch.float64)
    jacobian = vectors @ torch.diag(values) @ torch.linalg.inv(vectors)
    t = torch.zeros(n, dtype=torch.float64)
    t[::N_LM] = response * (1.0 + torch.rand(n_atoms, generator=generator, dtype=torch.float64))
    t[1::N_LM] = 0.1 * response
    constant = 0.2 * torch.randn(n, generator=generator, dtype=torch.float64)
    return Toy(jacobian, t, constant, bend)


class _Line:
    """J and t of a batch of toys, detached."""

    def __init__(self, toys: Sequence[Toy], density: Tensor, cheap_dense: bool) -> None:
        self._sizes = [toy.n_atoms for toy in toys]
        self.cheap_dense = cheap_dense
        with torch.no_grad():
            pieces = torch.split(density, self._sizes)
            self._matrices = [
                toy.derivative(piece.flatten()) for toy, piece in zip(toys, pieces, strict=True)
            ]
            self.fermi_response = torch.cat([toy.response.view(-1, N_LM) for toy in toys])

    def _each(self, values: Tensor, transpose: bool) -> Tensor:
        pieces = torch.split(values, self._sizes)
        matrices = [matrix.T if transpose else matrix for matrix in self._matrices]
        return torch.cat(
            [(m @ v.flatten()).view(-1, N_LM) for m, v in zip(matrices, pieces, strict=True)]
        )

    def apply(self, tangent: Tensor) -> Tensor:
        return self._each(tangent, False)

    def apply_transpose(self, cotangent: Tensor) -> Tensor:
        return self._each(cotangent, True)

    def dense(self) -> Tensor:
        size = max(self._sizes) * N_LM
        out = self.fermi_response.new_zeros(len(self._sizes), size, size)
        for index, matrix in enumerate(self._matrices):
            out[index, : len(matrix), : len(matrix)] = matrix
        return out


def toy_problem(
    toys: Sequence[Toy], charges: Sequence[float] | None, *, cheap_dense: bool = True
) -> FixedPointProblem:
    """A batch of graphs, attached to what the toys are made of.

    Args:
        charges: e per graph; None: constant Fermi level.
        cheap_dense: what the linearisation says of its dense form.
    """
    like = toys[0].constant
    counts = [toy.n_atoms for toy in toys]
    sizes = torch.tensor(counts, device=like.device)

    def evaluate(density: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        pieces, levels = torch.split(density, counts), torch.split(level, counts)
        rows = zip(toys, pieces, levels, strict=True)
        new = [toy.value(piece.flatten(), node.mean()).view(-1, N_LM) for toy, piece, node in rows]
        return torch.cat(new), density

    return FixedPointProblem(
        evaluate=evaluate,
        features=lambda density, level: density,
        linearise=lambda density, level: _Line(toys, density, cheap_dense),
        local_density=torch.cat([toy.constant.view(-1, N_LM) for toy in toys]),
        batch=torch.repeat_interleave(torch.arange(len(toys), device=like.device), sizes),
        atoms_per_graph=sizes,
        target_charge=None if charges is None else like.new_tensor(charges),
        is_affine=all(toy.bend == 0.0 for toy in toys),
    )


def run(
    problem: FixedPointProblem, solver: PartConfig = "auto", *, level: float = 0.0, **options: Any
) -> ScfResult:
    """Solve from the local density, to the last digits unless the options say otherwise."""
    import_builtin_parts()
    double = problem.local_density.dtype == torch.float64
    settings = {
        "solver": solver,
        "scf_tolerance": 1e-10 if double else 1e-5,
        "charge_tolerance": 1e-8 if double else 1e-4,
        "num_scf_steps": 300,
        "on_failure": "ignore",
        "constant_charge": problem.target_charge is not None,
        **options,
    }
    levels = problem.local_density.new_full((problem.n_graphs,), level)
    start = ScfState(problem.local_density.detach(), levels)
    with torch.no_grad():
        return solve(problem, start, ScfOptions(**settings))


def exact(toy: Toy, charge: float | None, level: float = 0.0) -> tuple[Tensor, float]:
    """The solution of an affine graph by dense linear algebra: density [n_atoms, 4] and level."""
    n = len(toy.constant)
    matrix = torch.eye(n, dtype=torch.float64) - toy.jacobian
    if charge is None:
        found = torch.linalg.solve(matrix, toy.constant + toy.response * level)
        return found.view(-1, N_LM), level
    charges = torch.zeros(n, dtype=torch.float64)
    charges[::N_LM] = 1.0
    top = torch.cat([matrix, -toy.response[:, None]], dim=1)
    bottom = torch.cat([charges, torch.zeros(1, dtype=torch.float64)])[None]
    right = torch.cat([toy.constant, torch.tensor([charge], dtype=torch.float64)])
    found = torch.linalg.solve(torch.cat([top, bottom]), right)
    return found[:-1].view(-1, N_LM), float(found[-1])
