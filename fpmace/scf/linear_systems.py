"""Three forms of the linearised problem for iterative solves, all of the same solution.

    (1 - J) d_rho - t d_mu = a        J = dG/d_rho,  t = dG/d_mu
    sum Q(d_rho)           = e        at constant charge

Vectors are flat, [n]; every graph is a segment of them. A form turns right-hand sides into such a
vector, applies its operator, and turns a solution back into (d_rho, d_mu), knowing the weights
[m, n_graphs] of the vectors that the operator was applied to; the same for the transposed problem
``(1 - J^T) y + q nu = g``, ``-t . y = h``, q the sum of charges.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fpmace.scf.charge_control import answer_to_level
from fpmace.scf.krylov import Segments
from fpmace.scf.problem import FixedPointProblem, Linearisation

Pair = tuple[Tensor, Tensor]
"""Per atom [n_atoms, n_lm] and per graph [n_graphs]."""


class LinearSystem(Protocol):
    """One form of the linearised problem."""

    segments: Segments

    def reduce(self, a: Tensor, e: Tensor) -> Tensor: ...

    def apply(self, flat: Tensor) -> Tensor: ...

    def restore(self, flat: Tensor, a: Tensor, e: Tensor, weights: Tensor) -> Pair: ...

    def reduce_transpose(self, g: Tensor, h: Tensor) -> Tensor: ...

    def apply_transpose(self, flat: Tensor) -> Tensor: ...

    def restore_transpose(self, flat: Tensor, g: Tensor, h: Tensor, weights: Tensor) -> Pair: ...


def make_system(
    problem: FixedPointProblem, line: Linearisation, min_response: float
) -> LinearSystem:
    """The cheapest form that fits.

    Args:
        min_response: the Fermi level is eliminated where the total charge responds to it by
            more than this part of what its atoms do.
    """
    if problem.target_charge is None:
        return FreeCharge(problem, line)
    _, responsive = answer_to_level(problem, line.fermi_response, min_response)
    if bool(responsive.all()):
        return EliminatedLevel(problem, line)
    return BorderedLevel(problem, line, responsive)


def atom_segments(problem: FixedPointProblem, n_lm: int) -> Segments:
    """Segments of a flat density."""
    return Segments(problem.batch.repeat_interleave(n_lm), problem.n_graphs)


class FreeCharge:
    """Constant Fermi level: 1 - J alone."""

    def __init__(self, problem: FixedPointProblem, line: Linearisation) -> None:
        self._line = line
        self._shape = line.fermi_response.shape
        self.segments = atom_segments(problem, self._shape[1])

    def reduce(self, a: Tensor, e: Tensor) -> Tensor:
        return a.reshape(-1)

    def apply(self, flat: Tensor) -> Tensor:
        return flat - self._line.apply(flat.view(self._shape)).reshape(-1)

    def restore(self, flat: Tensor, a: Tensor, e: Tensor, weights: Tensor) -> Pair:
        return flat.view(self._shape), torch.zeros_like(e)

    def reduce_transpose(self, g: Tensor, h: Tensor) -> Tensor:
        return g.reshape(-1)

    def apply_transpose(self, flat: Tensor) -> Tensor:
        return flat - self._line.apply_transpose(flat.view(self._shape)).reshape(-1)

    def restore_transpose(self, flat: Tensor, g: Tensor, h: Tensor, weights: Tensor) -> Pair:
        return flat.view(self._shape), torch.zeros_like(h)


class EliminatedLevel:
    """Constant charge, the Fermi level eliminated with its response at J = 0.

    The operator is 1 - P J with P = 1 - t q / (q . t): changes of the density that a shift of the
    Fermi level undoes are taken out, which keeps its spectrum near that of 1 - J.
    """

    def __init__(self, problem: FixedPointProblem, line: Linearisation) -> None:
        self._problem, self._line = problem, line
        self._t = line.fermi_response
        self._total = problem.sum(self._t[:, 0])
        self._share = self._t / problem.spread(self._total).unsqueeze(-1)
        self._shape = self._t.shape
        self._seen: list[Tensor] = []
        self.segments = atom_segments(problem, self._shape[1])

    def _follow(self, values: Tensor) -> Tensor:
        """[n_atoms, n_lm] change that adds the charges ``values`` [n_graphs]."""
        return self._share * self._problem.spread(values).unsqueeze(-1)

    def _along(self, density: Tensor) -> Tensor:
        """[n_graphs] t . density / (q . t)."""
        return self._problem.sum((self._share * density).sum(-1))

    def reduce(self, a: Tensor, e: Tensor) -> Tensor:
        self._seen.clear()
        return (a + self._follow(e - self._problem.charge(a))).reshape(-1)

    def apply(self, flat: Tensor) -> Tensor:
        image = self._line.apply(flat.view(self._shape))
        gained = self._problem.charge(image)
        self._seen.append(gained)
        return flat - (image - self._follow(gained)).reshape(-1)

    def _summed(self, weights: Tensor) -> Tensor:
        """[n_graphs] what the vectors seen gave, summed with the weights of the solution."""
        if len(weights) == 0:
            return torch.zeros_like(self._total)
        return (torch.stack(self._seen[: len(weights)]) * weights).sum(0)

    def restore(self, flat: Tensor, a: Tensor, e: Tensor, weights: Tensor) -> Pair:
        density = flat.view(self._shape)
        # A solve that was stopped early leaves a charge error, which a shift of the level mends.
        density = density + self._follow(e - self._problem.charge(density))
        level = (e - self._problem.charge(a) - self._summed(weights)) / self._total
        return density, level

    def reduce_transpose(self, g: Tensor, h: Tensor) -> Tensor:
        self._seen.clear()
        charges = g[:, :1] - self._problem.spread(self._level(g, h)).unsqueeze(-1)
        return torch.cat([charges, g[:, 1:]], dim=1).reshape(-1)

    def _level(self, g: Tensor, h: Tensor) -> Tensor:
        return h / self._total + self._along(g)

    def apply_transpose(self, flat: Tensor) -> Tensor:
        image = self._line.apply_transpose(flat.view(self._shape))
        along = self._along(image)
        self._seen.append(along)
        out = flat.view(self._shape) - image
        out[:, 0] += self._problem.spread(along)
        return out.reshape(-1)

    def restore_transpose(self, flat: Tensor, g: Tensor, h: Tensor, weights: Tensor) -> Pair:
        return flat.view(self._shape), self._level(g, h) + self._summed(weights)


class BorderedLevel:
    """Constant charge with the Fermi level among the unknowns, where some graph needs it.

    Graphs whose charge does respond keep the eliminated form, so that they do as well in any
    company; the others solve [[1 - J, -t], [q, 0]].
    """

    def __init__(
        self, problem: FixedPointProblem, line: Linearisation, responsive: Tensor
    ) -> None:
        self._problem, self._line = problem, line
        self._t = line.fermi_response
        self._shape = self._t.shape
        self.responsive = responsive
        total = problem.sum(self._t[:, 0])
        self._pivot = torch.where(responsive, total, torch.ones_like(total))
        norm = problem.sum(self._t.square().sum(-1)).sqrt()
        self._scale = torch.where(norm > 0, norm, torch.ones_like(norm))
        graphs = torch.arange(problem.n_graphs, device=norm.device)
        atoms = problem.batch.repeat_interleave(self._shape[1])
        self.segments = Segments(torch.cat([atoms, graphs]), problem.n_graphs)

    def _pack(self, density: Tensor, level: Tensor) -> Tensor:
        return torch.cat([density.reshape(-1), level * self._scale])

    def _unpack(self, flat: Tensor) -> Pair:
        n = self._shape.numel()
        return flat[:n].view(self._shape), flat[n:] / self._scale

    def _shifted(self, level: Tensor) -> Tensor:
        return self._t * self._problem.spread(level).unsqueeze(-1)

    def _along(self, density: Tensor) -> Tensor:
        return self._problem.sum((self._t * density).sum(-1))

    def _on_charges(self, level: Tensor) -> Tensor:
        out = torch.zeros_like(self._t)
        out[:, 0] = self._problem.spread(level)
        return out

    def _choose(self, eliminated: Pair, bordered: Pair) -> Tensor:
        atoms = self._problem.spread(self.responsive).unsqueeze(-1)
        return self._pack(
            torch.where(atoms, eliminated[0], bordered[0]),
            torch.where(self.responsive, eliminated[1], bordered[1]),
        )

    def reduce(self, a: Tensor, e: Tensor) -> Tensor:
        level = (e - self._problem.charge(a)) / self._pivot
        return self._choose((a + self._shifted(level), level), (a, e))

    def apply(self, flat: Tensor) -> Tensor:
        density, level = self._unpack(flat)
        image = self._line.apply(density)
        charge = self._problem.charge(image) / self._pivot
        top = density - image
        return self._choose(
            (top + self._shifted(charge), level + charge),
            (top - self._shifted(level), self._problem.charge(density)),
        )

    def restore(self, flat: Tensor, a: Tensor, e: Tensor, weights: Tensor) -> Pair:
        density, level = self._unpack(flat)
        missing = (e - self._problem.charge(density)) / self._pivot
        atoms = self._problem.spread(self.responsive).unsqueeze(-1)
        return torch.where(atoms, density + self._shifted(missing), density), level

    def reduce_transpose(self, g: Tensor, h: Tensor) -> Tensor:
        level = (h + self._along(g)) / self._pivot
        return self._choose((g - self._on_charges(level), level), (g, h))

    def apply_transpose(self, flat: Tensor) -> Tensor:
        density, level = self._unpack(flat)
        image = self._line.apply_transpose(density)
        along = self._along(image) / self._pivot
        top = density - image
        return self._choose(
            (top + self._on_charges(along), level - along),
            (top + self._on_charges(level), -self._along(density)),
        )

    def restore_transpose(self, flat: Tensor, g: Tensor, h: Tensor, weights: Tensor) -> Pair:
        return self._unpack(flat)
