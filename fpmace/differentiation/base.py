"""How derivatives are attached to a solution that was found without an autograd graph."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from fpmace.registry import set_base
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState


class Differentiation(ABC):
    """Turns a detached solution into one that depends on positions, strain and parameters."""

    @property
    @abstractmethod
    def exact_order(self) -> int | None:
        """Order to which derivatives are exact for every map; None: to the order asked for."""

    @abstractmethod
    def reattach(
        self,
        problem: FixedPointProblem,
        solution: ScfState,
        order: int,
        where: Tensor | None = None,
    ) -> ScfState:
        """Return the solution with derivatives exact to ``order`` (0: none).

        Args:
            problem: attached to positions and parameters.
            solution: density and Fermi level found.
            order: how often the result will be differentiated.
            where: [n_graphs] bool, graphs that get derivatives; None: all.
        """


set_base("differentiation", Differentiation)
