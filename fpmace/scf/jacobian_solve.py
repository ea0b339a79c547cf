"""The linearised problem: solves with the Jacobian of the residual and with its transpose.

Unknowns are a change of the density and, at constant charge, of the Fermi level of each graph:

    (1 - J) d_rho - t d_mu = a        J = dG/d_rho,  t = dG/d_mu
    sum Q(d_rho)           = e
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from fpmace.scf.charge_control import LEAST_ANSWER
from fpmace.scf.dense import DenseSolve
from fpmace.scf.krylov import KrylovResult, gmres
from fpmace.scf.linear_systems import BorderedLevel, LinearSystem, make_system
from fpmace.scf.problem import FixedPointProblem, Linearisation
from fpmace.scf.quadratic import QuadraticLinearisation, QuadraticSolve

DENSE_SIZE = 256
"""Unknowns of the largest graph up to which dense factors are the faster choice."""


def default_rtol(dtype: torch.dtype) -> float:
    """A relative tolerance that the precision can reach."""
    return 1e-10 if dtype == torch.float64 else 1e-5


def reachable_rtol(wanted: float | None, dtype: torch.dtype) -> float:
    """The tolerance wanted (None: the default), but not below what the precision can reach."""
    if wanted is None:
        return default_rtol(dtype)
    return max(wanted, 1e-14 if dtype == torch.float64 else default_rtol(dtype))


_INEXACT = 1e3
"""Residual of an adjoint solve, in units of its tolerance, from which a user is told."""


@dataclass
class JacobianSolve:
    """Solves the linearised fixed-point problem, graph by graph.

    Small graphs, where the linearisation offers J cheaply, are solved by factors of the dense
    matrices; all others by GMRES with products of J.

    Attributes:
        problem: gives the graphs and says whether the charge is fixed.
        linearisation: J and t at the point of interest, detached.
        rtol: relative tolerance of the solves.
        max_iterations: limit on the products with J in a solve.
        accuracy: e Angstrom^l; ``solve`` also stops when the root mean square residual of a graph
            is below it, however small the right-hand side was; the charge is met all the same.
        n_matvecs: products made so far.
        max_dense_size: unknowns of the largest graph (n_atoms n_lm) up to which dense factors
            are used; 0: never.
    """

    problem: FixedPointProblem
    linearisation: Linearisation
    rtol: float
    max_iterations: int = 100
    min_response: float = LEAST_ANSWER
    n_matvecs: int = 0
    accuracy: float = 0.0
    max_dense_size: int = DENSE_SIZE
    _dense: DenseSolve | None = field(default=None, repr=False)
    _system: LinearSystem | None = field(default=None, repr=False)
    _floor: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        problem, line = self.problem, self.linearisation
        with torch.no_grad():
            if self._is_small():
                self._dense = problem.kept("dense", line, lambda: DenseSolve(problem, line))
            else:
                self._system = make_system(problem, line, self.min_response)

    @property
    def is_dense(self) -> bool:
        """Whether solves are direct, to rounding; else they are iterative, to ``rtol``."""
        return self._dense is not None

    def _is_small(self) -> bool:
        if self.max_dense_size <= 0 or not self.linearisation.cheap_dense:
            return False
        n_lm = self.linearisation.fermi_response.shape[1]
        return int(self.problem.atoms_per_graph.max()) * n_lm <= self.max_dense_size

    def solve(self, a: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return (d_rho [n_atoms, n_lm], d_mu [n_graphs]) for residuals a and e."""
        with torch.no_grad():
            if self._dense is not None:
                return self._dense.solve(a.detach(), e.detach())
            system = self._iterative()
            found = self._gmres(system.apply, system.reduce(a, e), self._absolute())
            return system.restore(found.solution, a, e, found.weights)

    def solve_transpose(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Solve the transposed system: (y [n_atoms, n_lm], nu [n_graphs]) for covectors g and h.

        ``(1 - J^T) y + q nu = g`` and ``- t . y = h`` with q the charge functional.
        """
        with torch.no_grad():
            if self._dense is not None:
                return self._dense.solve(g.detach(), h.detach(), transpose=True)
            system = self._iterative()
            right = system.reduce_transpose(g, h)
            norm = system.segments.dot(right, right).sqrt().to("cpu", torch.float64).numpy()
            found = self._gmres(system.apply_transpose, right, self._floor)
            self._warn_if_inexact(found, norm)
            # Later covectors of the same backward pass may be rounding noise of this one.
            floor = self.rtol * np.nan_to_num(norm)
            self._floor = floor if self._floor is None else np.maximum(self._floor, floor)
            return system.restore_transpose(found.solution, g, h, found.weights)

    def _iterative(self) -> LinearSystem:
        if self._system is None:
            raise RuntimeError("neither dense nor iterative")
        return self._system

    def _gmres(
        self, apply: Callable[[Tensor], Tensor], rhs: Tensor, floor: np.ndarray | None
    ) -> KrylovResult:
        result = gmres(
            apply,
            rhs,
            self._iterative().segments,
            rtol=self.rtol,
            floor=floor,
            max_iterations=self.max_iterations,
        )
        self.n_matvecs += result.n_matvecs
        return result

    def _warn_if_inexact(self, found: KrylovResult, norm: np.ndarray) -> None:
        """Tell of an adjoint solve that gave up: nothing else would show it."""
        allowed = _INEXACT * self.rtol * np.maximum(np.nan_to_num(norm), 1e-300)
        if self._floor is not None:
            allowed = np.maximum(allowed, _INEXACT * self._floor)
        failed = int((found.residual > allowed).sum())
        if failed:
            warnings.warn(
                f"derivatives of {failed} structure(s) are inexact: the adjoint solve stopped "
                f"after {found.n_matvecs} products; the density response is near a pole, or "
                "max_linear_iterations is too small",
                RuntimeWarning,
                stacklevel=3,
            )

    def _absolute(self) -> np.ndarray | None:
        """Residual norm per graph at which the accuracy asked for is reached."""
        if self.accuracy == 0.0:
            return None
        n_lm = self.linearisation.fermi_response.shape[1]
        floor = self.accuracy * (self.problem.atoms_per_graph * n_lm).to(torch.float64).sqrt()
        if isinstance(self._system, BorderedLevel):
            floor = torch.where(self._system.responsive, floor, 0.0)
        return np.asarray(floor.cpu().numpy())


class Limits(TypedDict, total=False):
    """Limits of a linear solve; what is left out has its default."""

    max_iterations: int
    max_dense_size: int
    accuracy: float


LinearisedSolve: TypeAlias = JacobianSolve | QuadraticSolve


def linearised_solve(
    problem: FixedPointProblem, line: Linearisation, *, rtol: float, **limits: Unpack[Limits]
) -> LinearisedSolve:
    """The solve that fits the linearisation: symmetric for that of a quadratic form.

    Args:
        limits: ``max_iterations``, ``max_dense_size`` and ``accuracy``, if not the defaults.
    """
    if isinstance(line, QuadraticLinearisation):
        return QuadraticSolve(problem, line.form, rtol=rtol, **limits)
    return JacobianSolve(problem, line, rtol=rtol, **limits)
