"""States and results of a self-consistency solve."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from torch import Tensor

from fpmace.scf.diagnostics import ScfDiagnostics


class ScfStatus(IntEnum):
    """How a graph ended.

    DIVERGED: the density left all bounds; NONFINITE: the map gave NaN or infinity; STALLED: the
    solver found no way to reduce the residual; NO_SOLUTION: the map is affine and its linear
    system has no solution.
    """

    CONVERGED = 0
    MAX_STEPS = 1
    DIVERGED = 2
    NONFINITE = 3
    STALLED = 4
    NO_SOLUTION = 5


@dataclass(frozen=True, slots=True)
class ScfState:
    """The unknowns: density [n_atoms, n_lm] (e Angstrom^l) and Fermi level [n_graphs] (eV)."""

    density: Tensor
    fermi_level: Tensor


@dataclass(frozen=True, slots=True)
class ScfHistory:
    """Per pass: mean absolute density change and charge error, [n_graphs] each.

    ``densities`` ([n_atoms, n_lm], the start first) and ``fermi_levels`` are kept only where
    the full history is asked for.
    """

    density_change: list[Tensor] = field(default_factory=list)
    charge_error: list[Tensor] = field(default_factory=list)
    densities: list[Tensor] = field(default_factory=list)
    fermi_levels: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ScfResult:
    """The answer of a solve, per graph.

    Attributes:
        density: [n_atoms, n_lm].
        fermi_level: [n_graphs].
        features: [n_atoms, n_features] field features of the last map evaluation.
        status: [n_graphs] int64, values of :class:`ScfStatus`.
        n_steps: [n_graphs] int64, map evaluations until the graph stopped.
        density_change: [n_graphs] mean absolute density change of the last pass.
        charge_error: [n_graphs] total charge minus target (0 at constant Fermi level).
        n_map_evaluations: evaluations of the map made for the batch.
        n_matvecs: products with the Jacobian of the map.
        solver: [n_graphs] what gave each graph's answer; "a then b" where solver a handed the
            graph over to solver b.
        history: see :class:`ScfHistory`.
        residual: [n_graphs] mean absolute ``G(density) - density`` of the last pass; larger than
            the density change where a solver takes only part of it.
        met: which thresholds each graph met: name of the threshold to [n_graphs] bool.
        fallback: [n_graphs] bool, true where the unconverged solve was replaced by a truncated
            unrolled loop (``on_unconverged: unroll``).
        diagnostics: properties of the map at the answer, where asked for.
    """

    density: Tensor
    fermi_level: Tensor
    features: Tensor
    status: Tensor
    n_steps: Tensor
    density_change: Tensor
    charge_error: Tensor
    n_map_evaluations: int
    n_matvecs: int
    solver: list[str]
    history: ScfHistory | None
    residual: Tensor | None = None
    met: dict[str, Tensor] = field(default_factory=dict)
    fallback: Tensor | None = None
    diagnostics: ScfDiagnostics | None = None

    @property
    def converged(self) -> Tensor:
        """[n_graphs] bool."""
        return self.status == int(ScfStatus.CONVERGED)

    @property
    def usable(self) -> Tensor:
        """[n_graphs] bool: converged, or replaced by a truncated unrolled loop."""
        return self.converged if self.fallback is None else self.converged | self.fallback

    @property
    def n_unconverged(self) -> int:
        """Number of graphs that did not converge."""
        return int((~self.converged).sum())

    def __str__(self) -> str:
        done = int(self.converged.sum())
        return (
            f"SCF: {done} of {len(self.status)} converged, "
            f"{int(self.n_steps.max())} steps at most, {self.n_map_evaluations} map evaluations, "
            f"largest density change {float(self.density_change.max()):.2e}, "
            f"largest charge error {float(self.charge_error.abs().max()):.2e} e"
        )

    def describe(self, graph: int) -> str:
        """One line on one graph."""
        unmet = [name for name, reached in self.met.items() if not bool(reached[graph])]
        return (
            f"{ScfStatus(int(self.status[graph])).name.lower()} after "
            f"{int(self.n_steps[graph])} steps of {self.solver[graph]}, density change "
            f"{float(self.density_change[graph]):.2e}, charge error "
            f"{float(self.charge_error[graph]):.2e} e"
            f"{' (not met: ' + ', '.join(unmet) + ')' if unmet else ''}"
        )
