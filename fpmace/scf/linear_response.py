"""The linearised problem: solves with the Jacobian of the residual and with its transpose.

Unknowns are a change of the density and, at constant charge, of the Fermi level of each graph:

    (1 - J) d_rho - t d_mu = a        J = dG/d_rho,  t = dG/d_mu
    sum Q(d_rho)           = e

Where the total charge responds to the Fermi level (X = sum_i t_iQ is not small) d_mu is
eliminated with the block factor at J = 0, which keeps the spectrum near that of 1 - J.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fpmace.scf.dense import DenseResponse
from fpmace.scf.krylov import Segments, gmres
from fpmace.scf.problem import FixedPointProblem, Linearisation

DENSE_SIZE = 256
"""Unknowns of the largest graph up to which dense factors are the faster choice."""


def default_rtol(dtype: torch.dtype) -> float:
    """A relative tolerance that the precision can reach."""
    return 1e-10 if dtype == torch.float64 else 1e-5


@dataclass
class LinearResponse:
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
    min_response: float = 1e-3
    n_matvecs: int = 0
    accuracy: float = 0.0
    max_dense_size: int = DENSE_SIZE
    _dense: DenseResponse | None = field(default=None, repr=False)
    _floor: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        problem = self.problem
        t = self.linearisation.fermi_response
        self._shape = t.shape
        if self._is_small():
            with torch.no_grad():
                self._dense = DenseResponse(problem, self.linearisation)
            return
        atoms = problem.batch.repeat_interleave(t.shape[1])
        if problem.target_charge is None:
            self._segments = Segments(atoms, problem.n_graphs)
            return
        graphs = torch.arange(problem.n_graphs, device=t.device)
        self._segments = Segments(torch.cat([atoms, graphs]), problem.n_graphs)
        self._total = problem.sum(t[:, 0])
        magnitude = problem.sum(t[:, 0].abs())
        self._direct = self._total.abs() > self.min_response * magnitude
        self._pivot = torch.where(self._direct, self._total, torch.ones_like(self._total))
        norm = problem.sum(t.square().sum(-1)).sqrt()
        self._level_scale = torch.where(norm > 0, norm, torch.ones_like(norm))

    @property
    def is_dense(self) -> bool:
        """Whether solves are direct, to rounding; else they are iterative, to ``rtol``."""
        return self._dense is not None

    def _is_small(self) -> bool:
        if self.max_dense_size <= 0 or not self.linearisation.cheap_dense:
            return False
        largest = int(self.problem.atoms_per_graph.max()) * self._shape[1]
        return largest <= self.max_dense_size

    def solve(self, a: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return (d_rho [n_atoms, n_lm], d_mu [n_graphs]) for residuals a and e."""
        if self._dense is not None:
            return self._dense.solve(a.detach(), e.detach())
        if self.problem.target_charge is None:
            solution = self._gmres(lambda x: x - self._jacobian(x), a.reshape(-1))
            return solution.view(self._shape), torch.zeros_like(e)
        top, bottom = self._reduce(a, e)
        density, level = self._unpack(self._gmres(self._apply, self._pack(top, bottom)))
        if self.accuracy > 0.0:
            missing = (e - self._charge(density)) / self._pivot
            density = self._select(density + self._times_response(missing), density)
        return density, level

    def solve_transpose(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Solve the transposed system: (y [n_atoms, n_lm], nu [n_graphs]) for covectors g and h.

        ``(1 - J^T) y + q nu = g`` and ``- t . y = h`` with q the charge functional.
        """
        if self._dense is not None:
            return self._dense.solve(g.detach(), h.detach(), transpose=True)
        if self.problem.target_charge is None:
            solution = self._gmres(
                lambda x: x - self._jacobian(x, transpose=True), g.reshape(-1), covector=True
            )
            return solution.view(self._shape), torch.zeros_like(h)
        top, bottom = self._reduce_transpose(g, h)
        solution = self._gmres(self._apply_transpose, self._pack(top, bottom), covector=True)
        return self._unpack(solution)

    def _gmres(
        self, apply: Callable[[Tensor], Tensor], rhs: Tensor, *, covector: bool = False
    ) -> Tensor:
        with torch.no_grad():
            rhs = rhs.detach()
            result = gmres(
                apply,
                rhs,
                self._segments,
                rtol=self.rtol,
                floor=self._floor if covector else self._absolute(),
                max_iterations=self.max_iterations,
            )
            if covector:
                norm = self._segments.dot(rhs, rhs).sqrt().to("cpu", torch.float64).numpy()
                # Later covectors of the same backward pass may be rounding noise of this one.
                floor = self.rtol * np.nan_to_num(norm)
                self._floor = floor if self._floor is None else np.maximum(self._floor, floor)
        self.n_matvecs += result.n_matvecs
        return result.solution

    def _absolute(self) -> np.ndarray | None:
        if self.accuracy == 0.0:
            return None
        entries = self.problem.atoms_per_graph * self._shape[1]
        floor = self.accuracy * entries.to(torch.float64).sqrt()
        if self.problem.target_charge is not None:
            floor = torch.where(self._direct, floor, 0.0)
        return np.asarray(floor.cpu().numpy())

    def _jacobian(self, flat: Tensor, *, transpose: bool = False) -> Tensor:
        line = self.linearisation
        density = flat.view(self._shape)
        image = line.apply_transpose(density) if transpose else line.apply(density)
        return image.reshape(-1)

    def _pack(self, density: Tensor, level: Tensor) -> Tensor:
        return torch.cat([density.reshape(-1), level * self._level_scale])

    def _unpack(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        n = self._shape.numel()
        return flat[:n].view(self._shape), flat[n:] / self._level_scale

    def _charge(self, density: Tensor) -> Tensor:
        return self.problem.sum(density[:, 0])

    def _times_response(self, level: Tensor) -> Tensor:
        return self.linearisation.fermi_response * self.problem.spread(level).unsqueeze(-1)

    def _along_response(self, density: Tensor) -> Tensor:
        return self.problem.sum((self.linearisation.fermi_response * density).sum(-1))

    def _on_charges(self, level: Tensor) -> Tensor:
        out = torch.zeros(self._shape, dtype=level.dtype, device=level.device)
        out[:, 0] = self.problem.spread(level)
        return out

    def _select(self, direct: Tensor, bordered: Tensor) -> Tensor:
        """Per graph the eliminated form, or the bordered one where the charge does not respond."""
        mask = self._direct
        if direct.dim() == 2:
            mask = self.problem.spread(mask).unsqueeze(-1)
        return torch.where(mask, direct, bordered)

    def _reduce(self, a: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        level = (e - self._charge(a)) / self._pivot
        return self._select(a + self._times_response(level), a), self._select(level, e)

    def _apply(self, flat: Tensor) -> Tensor:
        density, level = self._unpack(flat)
        image = self.linearisation.apply(density)
        charge = self._charge(image) / self._pivot
        top = density - image
        direct = top + self._times_response(charge)
        bordered = top - self._times_response(level)
        return self._pack(
            self._select(direct, bordered), self._select(level + charge, self._charge(density))
        )

    def _reduce_transpose(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        level = (h + self._along_response(g)) / self._pivot
        return self._select(g - self._on_charges(level), g), self._select(level, h)

    def _apply_transpose(self, flat: Tensor) -> Tensor:
        density, level = self._unpack(flat)
        image = self.linearisation.apply_transpose(density)
        along = self._along_response(image) / self._pivot
        top = density - image
        direct = top + self._on_charges(along)
        bordered = top + self._on_charges(level)
        return self._pack(
            self._select(direct, bordered),
            self._select(level - along, -self._along_response(density)),
        )
