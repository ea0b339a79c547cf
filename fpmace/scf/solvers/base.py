"""The interface of SCF solvers: ``start``, ``evaluate``, ``advance``; the driver owns the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

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
        density_change: [n_graphs] compared with the tolerance.
        charge_error: [n_graphs].
    """

    density: Tensor
    fermi_level: Tensor
    fermi_next: Tensor
    features: Tensor
    density_change: Tensor
    charge_error: Tensor


class Solver(ABC):
    """Finds a fixed point. Works graph by graph: no graph may influence another."""

    differentiable: bool = False
    """Whether derivatives may be taken through the passes (``unroll_scf``)."""

    needs_affine: bool = False
    """Whether the map must be affine in density and Fermi level."""

    @abstractmethod
    def start(
        self, problem: FixedPointProblem, density: Tensor, fermi_level: Tensor, options: ScfOptions
    ) -> Any:
        """Return the state before the first pass."""

    @abstractmethod
    def evaluate(
        self, problem: FixedPointProblem, state: Any, *, last: bool
    ) -> tuple[Report, Any]:
        """Evaluate the map once; ``last`` tells that no pass will follow."""

    @abstractmethod
    def advance(self, problem: FixedPointProblem, state: Any, active: Tensor) -> Any:
        """Move the graphs where ``active`` [n_graphs] is true; keep the others finite."""

    def phases(self, problem: FixedPointProblem, options: ScfOptions) -> list[tuple[Solver, int]]:
        """Solvers to run in turn on the graphs still unconverged, each with its pass limit."""
        return [(self, options.num_scf_steps - 1)]

    def n_matvecs(self, state: Any) -> int:
        """Products with the Jacobian made so far."""
        return 0


set_base("scf_solver", Solver)
