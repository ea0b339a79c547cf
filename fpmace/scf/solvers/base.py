"""The interfaces of SCF solvers and of plans of them; the driver owns the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from fpmace.registry import set_base
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem


@dataclass(frozen=True, slots=True)
class Report:
    """What a pass found.

    Attributes:
        density: [n_atoms, n_lm] the iterate offered as the answer.
        fermi_level: [n_graphs] the level it belongs to.
        fermi_next: [n_graphs] the level the next pass would use (the answer if not converged).
        features: [n_atoms, n_features].
        density_change: [n_graphs] compared with ``scf_tolerance``.
        charge_error: [n_graphs].
        residual: [n_graphs] mean absolute G(density) - density; None: the density change is it.
        gave_up: [n_graphs] bool, true where the solver sees no way on; None: nowhere.
    """

    density: Tensor
    fermi_level: Tensor
    fermi_next: Tensor
    features: Tensor
    density_change: Tensor
    charge_error: Tensor
    residual: Tensor | None = None
    gave_up: Tensor | None = None


State = TypeVar("State")
"""What a solver remembers between passes."""

Found = TypeVar("Found")
"""What an evaluation found, for the step that follows it."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A solver and its limit on passes; ``name`` tells who gave the answer."""

    solver: AnySolver
    limit: int
    name: str = ""


class SolvePlan(ABC):
    """Which solvers to run on a problem, in turn: what the kind ``scf_solver`` holds."""

    differentiable: bool = False
    """Whether derivatives may be taken through the passes (``unroll_scf``)."""

    @abstractmethod
    def phases(self, problem: FixedPointProblem, options: ScfOptions) -> list[Phase]:
        """The phases; each works on the graphs that the earlier ones left unconverged.

        Raises:
            ConfigError: if the problem is not one that the solvers can do.
        """


class Solver(SolvePlan, Generic[State, Found]):
    """Finds a fixed point. Works graph by graph: no graph may influence another.

    By itself it is the plan of one phase.
    """

    recovers: bool = False
    """Whether the solver finds its way back from a bad iterate, and says when it gives up; else
    a graph with a large density change or charge is stopped as diverged."""

    @abstractmethod
    def start(
        self, problem: FixedPointProblem, density: Tensor, fermi_level: Tensor, options: ScfOptions
    ) -> State:
        """Return the state before the first pass."""

    @abstractmethod
    def evaluate(
        self, problem: FixedPointProblem, state: State, *, last: bool
    ) -> tuple[Report, Found]:
        """Evaluate the map once; ``last`` tells that no pass will follow."""

    @abstractmethod
    def advance(
        self, problem: FixedPointProblem, state: State, found: Found, active: Tensor
    ) -> State:
        """Move the graphs where ``active`` [n_graphs] is true; keep the others finite."""

    def phases(self, problem: FixedPointProblem, options: ScfOptions) -> list[Phase]:
        return [Phase(self, options.num_scf_steps - 1)]

    def n_matvecs(self, state: State) -> int:
        """Products with the Jacobian made so far."""
        return 0


AnySolver: TypeAlias = "Solver[Any, Any]"


@dataclass(frozen=True, slots=True)
class Iterate:
    """A density and Fermi level, and what the map says about them.

    Attributes:
        density: [n_atoms, n_lm].
        fermi_level: [n_graphs].
        residual: [n_atoms, n_lm] G(density) - density.
        charge_error: [n_graphs] e.
        size: [n_graphs] mean absolute residual plus the charge error per atom; infinite where
            the map is not finite.
    """

    density: Tensor
    fermi_level: Tensor
    residual: Tensor
    charge_error: Tensor
    size: Tensor

    def replace_where(self, problem: FixedPointProblem, mask: Tensor, other: Iterate) -> Iterate:
        """Take the graphs of ``mask`` [n_graphs] from ``other``."""
        atoms = problem.spread(mask).unsqueeze(-1)
        return Iterate(
            torch.where(atoms, other.density, self.density),
            torch.where(mask, other.fermi_level, self.fermi_level),
            torch.where(atoms, other.residual, self.residual),
            torch.where(mask, other.charge_error, self.charge_error),
            torch.where(mask, other.size, self.size),
        )


def evaluate_at(
    problem: FixedPointProblem, density: Tensor, fermi_level: Tensor
) -> tuple[Report, Iterate]:
    """Evaluate the map and report on the iterate itself."""
    new, features = problem.evaluate(density, problem.spread(fermi_level))
    residual = new - density
    change = problem.mean_abs(residual)
    error = problem.charge_error(density)
    size = change + error.abs() / problem.atoms_per_graph
    size = torch.where(torch.isfinite(size), size, torch.inf)
    report = Report(density, fermi_level, fermi_level, features, change, error, change)
    return report, Iterate(density, fermi_level, residual, error, size)


def within(change: Tensor, limit: float) -> Tensor:
    """The fraction of a change that stays within a limit."""
    size = change.abs()
    return torch.where(size > limit, limit / size.clamp_min(limit), torch.ones_like(size))


set_base("scf_solver", SolvePlan)
