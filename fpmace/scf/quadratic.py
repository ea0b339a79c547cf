"""Densities that minimise a convex quadratic energy: charge equilibration and passive rules.

Per graph, with the symmetric positive semidefinite interaction C of the density, response
blocks S_i of the atoms, a drive d (electronegativities and external potential) and u the monopole
selector of a group of atoms, the energy is written with one dual potential w per multipole,

    rho(w)   = rho0 - S w
    L(w, mu) = 1/2 w.S.w + 1/2 rho.C.rho + d.rho + sum_f mu_f (u_f.rho - Q_f)

It is stationary where S (w - d - C rho - mu u) = 0 and the charges are met, and its solution is
unique. With S = B B^T and y = B^T w this is (1 + B^T C B) y = B^T (d + C rho0 + mu u): a symmetric
matrix whose eigenvalues are 1 or more. No inverse of S is formed, so S may be singular.

Everything here is detached: a form is an operator at one geometry and one set of weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from fpmace.scf.conjugate_gradients import DualProblem, conjugate_gradients
from fpmace.scf.problem import ChargeGroups, FixedPointProblem
from fpmace.scf.quadratic_dense import CholeskySolve

T = TypeVar("T")
DENSE_SIZE = 256
"""Unknowns of the largest graph up to which Cholesky factors are the faster choice."""


@dataclass(frozen=True)
class QuadraticForm:
    """The operators of a quadratic energy.

    Attributes:
        response: [n_atoms, n, n] S_i, symmetric positive semidefinite, e Angstrom^l per V/A^l.
        interaction: C times a density, [n_atoms, n] both; symmetric, positive semidefinite.
        own: [n] the diagonal of C on one atom by itself, for the preconditioner.
        dense_interaction: C of each graph as [n_graphs, n_max n, n_max n], atom-major, zero in
            padding; None: there is no cheap way to it.
        fragments: groups of atoms none of which gains charge; None: the whole graph does as the
            problem says.
    """

    response: Tensor
    interaction: Callable[[Tensor], Tensor]
    own: Tensor
    dense_interaction: Callable[[], Tensor] | None = None
    fragments: ChargeGroups | None = None

    def damped(self, factor: Tensor) -> QuadraticForm:
        """The form with responses times a factor for each atom, [n_atoms]."""
        return replace(self, response=self.response * factor[:, None, None])

    def respond(self, potential: Tensor) -> Tensor:
        """S times a potential, [n_atoms, n] both; no charge leaves a fragment."""
        moved = torch.bmm(self.response, potential.unsqueeze(-1)).squeeze(-1)
        if self.fragments is None:
            return moved
        gained = self.fragments.sum(moved[:, 0])
        level = self.fragments.spread(gained / movable(self.response, self.fragments))
        return moved - self.charge_response * level.unsqueeze(-1)

    @property
    def charge_response(self) -> Tensor:
        """[n_atoms, n]: S u, what a potential of 1 V on the charges moves."""
        return self.response[:, :, 0]


class QuadraticLinearisation:
    """J = -S C of the map rho -> rho0 - S (C rho + ...), which is the same everywhere."""

    def __init__(self, form: QuadraticForm) -> None:
        self.form = form
        uniform = torch.zeros_like(form.charge_response)
        uniform[:, 0] = 1.0
        self.fermi_response = -form.respond(uniform)
        self.cheap_dense = form.dense_interaction is not None and form.fragments is None

    def apply(self, tangent: Tensor) -> Tensor:
        return -self.form.respond(self.form.interaction(tangent))

    def apply_transpose(self, cotangent: Tensor) -> Tensor:
        return -self.form.interaction(self.form.respond(cotangent))

    def dense(self) -> Tensor:
        assert self.form.dense_interaction is not None
        matrix = self.form.dense_interaction()
        n_graphs, size = matrix.shape[:2]
        n = self.form.own.shape[0]
        # Rows of padded atoms are zero already, so any response will do for them.
        present = matrix.diagonal(dim1=1, dim2=2).view(n_graphs, -1, n)[..., 0] != 0
        blocks = matrix.new_zeros(n_graphs, size // n, n, n)
        blocks[present] = self.form.response
        return -(blocks @ matrix.view(n_graphs, -1, n, size)).view_as(matrix)


@dataclass
class QuadraticSolve:
    """Solves the linearised problem of a quadratic form and its transpose, graph by graph.

    Both come down to (1 + C S) w = r + mu u with u.S.w = c: by Cholesky factors for small graphs,
    by conjugate gradients in the inner product w.S.w for all others. The interface is that of
    the general solve with a Jacobian.

    Attributes:
        problem: gives the graphs and says whether charges are held.
        form: the operators.
        rtol: relative tolerance of an iterative solve, in the energy norm.
        max_iterations: limit on the products with C in a solve.
        accuracy: e Angstrom^l; ``solve`` also stops when the root mean square residual of the
            density is below it.
        max_dense_size: unknowns of the largest graph up to which factors are used; 0: never.
        n_matvecs: products with C made so far.
    """

    problem: FixedPointProblem
    form: QuadraticForm
    rtol: float
    max_iterations: int = 200
    accuracy: float = 0.0
    max_dense_size: int = DENSE_SIZE
    n_matvecs: int = 0
    _dense: CholeskySolve | None = field(default=None, repr=False)
    _dual: DualProblem | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        problem, form = self.problem, self.form
        size = int(problem.atoms_per_graph.max()) * form.own.shape[0]
        with torch.no_grad():
            if form.dense_interaction is not None and size <= self.max_dense_size:
                self._dense = self._kept(
                    "cholesky",
                    lambda: CholeskySolve(self._groups, form, problem.atoms_per_graph),
                )
            else:
                self._dual = self._kept(
                    "dual", lambda: DualProblem(form, problem.batch, self._groups)
                )

    def _kept(self, name: str, make: Callable[[], T]) -> T:
        """What ``make`` returns, kept with the problem if this is its one form."""
        return self.problem.remember(name, make) if self.form is self.problem.quadratic else make()

    @property
    def _groups(self) -> ChargeGroups:
        return self.form.fragments or self.problem.charge_groups

    @property
    def linearisation(self) -> QuadraticLinearisation:
        """The Jacobian of the map, as an operator."""
        return QuadraticLinearisation(self.form)

    @property
    def is_dense(self) -> bool:
        """Whether solves are direct, to rounding; else they are iterative, to ``rtol``."""
        return self._dense is not None

    def solve(self, a: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """(d_rho, d_mu) with (1 - J) d_rho - t d_mu = a and q.d_rho = e if charges are held."""
        with torch.no_grad():
            a, e = a.detach(), e.detach()
            charge = self.problem.charge(a) - e
            _, moved, level = self._solve(self.form.interaction(a), charge, self.accuracy)
            self.n_matvecs += 1
            return a - moved, torch.zeros_like(e) if self.form.fragments else level

    def solve_transpose(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """(y, nu) with (1 - J^T) y + q nu = g and, where charges are held, -t.y = h."""
        with torch.no_grad():
            potential, _, level = self._solve(g.detach(), h.detach(), 0.0)
            if self.form.fragments is None:
                return potential, -level
            # The level of a fragment is a function of its potential, not an unknown.
            potential = potential.clone()
            potential[:, 0] -= self.form.fragments.spread(level)
            return potential, torch.zeros_like(h)

    def _solve(self, r: Tensor, charge: Tensor, accuracy: float) -> tuple[Tensor, Tensor, Tensor]:
        held = self.problem.target_charge is not None
        if self.form.fragments is not None:
            held, charge = True, r.new_zeros(self.form.fragments.count)
        if self._dense is not None:
            return self._dense.solve(r, charge if held else None)
        assert self._dual is not None
        found = conjugate_gradients(
            self._dual,
            r,
            charge if held else None,
            rtol=self.rtol,
            accuracy=accuracy,
            max_iterations=self.max_iterations,
        )
        self.n_matvecs += found.n_products
        if found.n_unconverged and accuracy == 0.0:
            warnings.warn(
                f"derivatives of {found.n_unconverged} structure(s) are inexact: the solve "
                f"stopped after {found.n_products} products; raise max_linear_iterations",
                RuntimeWarning,
                stacklevel=4,
            )
        return found.potential, found.moved, found.level


def movable(response: Tensor, groups: ChargeGroups) -> Tensor:
    """[n_groups] charge that a potential of 1 V on a group moves, e/V; infinite where none."""
    total = groups.sum(response[:, 0, 0])
    return torch.where(total > 0, total, torch.inf)
