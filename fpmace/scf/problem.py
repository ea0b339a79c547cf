"""What is solved: the density that the map returns unchanged, at fixed charge or Fermi level.

Unknowns are the density and, at constant charge, one Fermi level per graph; residuals are the
density change ``G(density, mu) - density`` and the charge error ``Q_target - sum Q``. Nothing
here knows of neural networks: a problem is a few functions of tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from fpmace.scf.quadratic import QuadraticForm


def graph_sum(values: Tensor, batch: Tensor, n_graphs: int) -> Tensor:
    """Sum over the atoms of each graph: [n_atoms, ...] to [n_graphs, ...]."""
    if n_graphs == 1:
        return values.sum(0, keepdim=True)
    out = torch.zeros((n_graphs, *values.shape[1:]), dtype=values.dtype, device=values.device)
    return out.index_add(0, batch, values)


def spread(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Value of each atom [n_atoms] from that of its graph (or group of atoms) [count]."""
    return values.expand(index.shape) if count == 1 else values[index]


T = TypeVar("T")

MapFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(density [n_atoms, n_lm], Fermi level of each atom [n_atoms]) -> (new density, features)."""


class Linearisation(Protocol):
    """The derivative J of the map with respect to the density at one point, as an operator."""

    fermi_response: Tensor
    """[n_atoms, n_lm]: derivative of the map when the Fermi level of the whole graph rises."""

    cheap_dense: bool
    """Whether :meth:`dense` costs less than a few products."""

    def apply(self, tangent: Tensor) -> Tensor:
        """J times a change of the density, [n_atoms, n_lm] both."""
        ...

    def apply_transpose(self, cotangent: Tensor) -> Tensor:
        """Transpose of J times a covector, [n_atoms, n_lm] both."""
        ...

    def dense(self) -> Tensor:
        """J of each graph, [n_graphs, n_max n_lm, n_max n_lm], atom-major, zero in padding."""
        ...


@dataclass(frozen=True, slots=True)
class ChargeGroups:
    """Which atoms share a charge and a Fermi level: by default those of a graph.

    Attributes:
        index: [n_atoms] int64, group of each atom; no group spans two graphs.
        count: number of groups.
        graph: [count] int64, graph of each group.
    """

    index: Tensor
    count: int
    graph: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """[count] to [n_atoms]."""
        return spread(values, self.index, self.count)

    def sum(self, values: Tensor) -> Tensor:
        """[n_atoms, ...] to [count, ...]."""
        return graph_sum(values, self.index, self.count)


@dataclass(frozen=True)
class FixedPointProblem:
    """A fixed-point problem for a batch of independent graphs.

    Attributes:
        evaluate: the map G.
        features: (density, Fermi level of each atom) -> field features, without the update rule.
        linearise: (density, Fermi level of each atom) -> :class:`Linearisation`, detached.
        local_density: [n_atoms, n_lm], the field-independent part of G.
        batch: [n_atoms] graph of each atom.
        atoms_per_graph: [n_graphs].
        target_charge: [n_graphs] e, or None at constant Fermi level.
        is_affine: whether G is affine in density and Fermi level.
        is_convex: whether the solution is the minimum of a convex energy, so that every
            linearisation is that of a quadratic form.
        potentials: density -> potential at the atoms [n_atoms], V; None where there is none.
        quadratic: the same problem as the minimum of a convex energy, for rules that are passive
            (``auto`` then solves by ``cg``); None for all others.
        stationary: whether the energy that will be formed is stationary in the solution at fixed
            features: its forces need no derivative of the density.
        recompute: keep nothing of an evaluation for the backward pass but its inputs, and repeat
            it there (activation checkpointing).
    """

    evaluate: MapFunction
    features: Callable[[Tensor, Tensor], Tensor]
    linearise: Callable[[Tensor, Tensor], Linearisation]
    local_density: Tensor
    batch: Tensor
    atoms_per_graph: Tensor
    target_charge: Tensor | None
    is_affine: bool
    is_convex: bool = False
    potentials: Callable[[Tensor], Tensor] | None = None
    quadratic: QuadraticForm | None = None
    stationary: bool = False
    recompute: bool = False
    _memo: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    @property
    def n_graphs(self) -> int:
        return self.atoms_per_graph.shape[0]

    @property
    def charge_groups(self) -> ChargeGroups:
        """Which atoms share a charge: those of a graph."""
        graphs = torch.arange(self.n_graphs, device=self.batch.device)
        return ChargeGroups(self.batch, self.n_graphs, graphs)

    def remember(self, name: str, make: Callable[[], T]) -> T:
        """What ``make`` returned the first time; for what belongs to the problem as a whole."""
        if name not in self._memo:
            self._memo[name] = make()
        found: T = self._memo[name]
        return found

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the atoms of each graph."""
        return graph_sum(values, self.batch, self.n_graphs)

    def mean_abs(self, density: Tensor) -> Tensor:
        """[n_graphs] mean over atoms and components of the absolute value."""
        return self.sum(density.abs().mean(-1)) / self.atoms_per_graph

    def charge(self, density: Tensor) -> Tensor:
        """[n_graphs] total charge."""
        return self.sum(density[:, 0])

    def charge_error(self, density: Tensor) -> Tensor:
        """[n_graphs] total charge minus target; zero at constant Fermi level."""
        if self.target_charge is None:
            return torch.zeros_like(density[:1, 0]).expand(self.n_graphs)
        return self.charge(density) - self.target_charge

    def spread(self, fermi_level: Tensor) -> Tensor:
        """Fermi level of each atom [n_atoms] from that of each graph."""
        return spread(fermi_level, self.batch, self.n_graphs)

    def linearisation(self, density: Tensor, fermi_level: Tensor) -> Linearisation:
        """The derivative of the map at a point; computed once where the map is affine.

        Args:
            fermi_level: [n_graphs].
        """
        if not self.is_affine:
            return self.linearise(density, self.spread(fermi_level))
        if "linearisation" not in self._memo:
            self._memo["linearisation"] = self.linearise(density, self.spread(fermi_level))
        line: Linearisation = self._memo["linearisation"]
        return line

    def kept(self, name: str, line: Linearisation, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, kept for the next call if it belongs to the one linearisation."""
        if self._memo.get("linearisation") is not line:
            return make()
        if name not in self._memo:
            self._memo[name] = make()
        return self._memo[name]

    def evaluate_differentiably(
        self, density: Tensor, fermi_level: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Evaluate the map in a loop that will be differentiated, recomputing if asked for.

        Args:
            fermi_level: [n_graphs].
        """
        levels = self.spread(fermi_level)
        if self.recompute and torch.is_grad_enabled():
            new, features = checkpoint(self.evaluate, density, levels, use_reentrant=False)
            return new, features
        return self.evaluate(density, levels)

    def evaluate_with_fukui(
        self, density: Tensor, fermi_level: Tensor, *, create_graph: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the map and chi_i, the derivative of the total charge by the level of atom i.

        Returns:
            (new density [n_atoms, n_lm], features, chi [n_atoms] e/eV).
        """
        if self.recompute and create_graph:
            new, features, chi = checkpoint(
                self._fukui, density, fermi_level, True, use_reentrant=False
            )
            return new, features, chi
        return self._fukui(density, fermi_level, create_graph)

    def _fukui(
        self, density: Tensor, fermi_level: Tensor, create_graph: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            levels = self.spread(fermi_level)
            levels = levels if create_graph else levels.detach()
            probe = torch.zeros_like(levels, requires_grad=True)
            new, features = self.evaluate(density, levels + probe)
            (chi,) = torch.autograd.grad(new[:, 0].sum(), probe, create_graph=create_graph)
        if not create_graph:
            new, features = new.detach(), features.detach()
        return new, features, chi
