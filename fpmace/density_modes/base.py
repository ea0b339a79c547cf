"""What a density mode is: a start, a way to the density, and its derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.registry import set_base
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfResult, ScfState


@dataclass(frozen=True, slots=True)
class Solution:
    """Density [n_atoms, n_lm], Fermi level [n_graphs] and features, with derivatives attached.

    ``hold_density`` is a context in which the attached derivatives of the density vanish: for
    energies that are stationary in it, whose gradient by positions and strain is the explicit one,
    and for approximate forces.
    """

    density: Tensor
    fermi_level: Tensor
    features: Tensor
    scf: ScfResult | None = None
    hold_density: Callable[[], AbstractContextManager[None]] = field(
        default=nullcontext, repr=False, compare=False
    )


@dataclass(frozen=True, slots=True)
class Start:
    """Where the search for a density starts.

    Attributes:
        state: density [n_atoms, n_lm] and Fermi level [n_graphs].
        above_local: whether the field-independent density is to be added to the density.
    """

    state: ScfState
    above_local: bool = False

    def resolve(self, problem: FixedPointProblem) -> ScfState:
        """The starting density and Fermi level of a problem."""
        density = self.state.density
        if self.above_local:
            density = problem.local_density.detach() + density
        return ScfState(density, self.state.fermi_level)


class DensityMode(ABC):
    """Finds the density of a batch and attaches derivatives to it; in training and inference."""

    scf: ScfOptions | None = None

    solves: bool = False
    """Whether the density found is a converged solution wherever the solve succeeds."""

    @property
    def constant_charge(self) -> bool:
        """Whether the total charge is held (else the Fermi level)."""
        return self.scf is None or self.scf.constant_charge

    @property
    def forces_at_fixed_density(self) -> bool:
        """Whether forces and stress are those of a held density; all else is exact."""
        return self.solves and self.scf is not None and not self.scf.use_autograd_forces

    @property
    def holds_fragments(self) -> bool:
        """Whether each fragment keeps its charge (else the structure as a whole)."""
        scf = self.scf
        return scf is not None and scf.constant_charge and scf.charge_per == "fragment"

    @property
    def requires_labels(self) -> tuple[str, ...]:
        """Labels that every configuration must carry."""
        if self.scf is None:
            return ()
        needed = []
        if self.scf.initial_density == "from_data":
            needed.append("charges")
        if self.scf.initial_fermi_level == "from_data":
            needed.append("fermi_level")
        if self.holds_fragments:
            needed += ["cluster_id", "formal_charges"]
        return tuple(needed)

    def labels_needed_of(self, counts: Mapping[str, int]) -> tuple[str, ...]:
        """Labels that data with these counts must carry everywhere.

        Where no structure has a Fermi level, 0 eV stands for it, unless the level is held.
        """
        free = self.constant_charge and counts.get("fermi_level", 0) == 0
        return tuple(n for n in self.requires_labels if not (free and n == "fermi_level"))

    def training_reference(
        self, reference: ScfState, problem: FixedPointProblem, batch: Batch
    ) -> ScfState:
        """What a training step gets in place of the reference of the data; by default the same."""
        return reference

    @abstractmethod
    def run(
        self,
        problem: FixedPointProblem,
        reference: ScfState,
        *,
        order: int,
        start: Start | None = None,
    ) -> Solution:
        """Find the density.

        Args:
            problem: attached to positions and parameters.
            reference: density and Fermi level of the data (zeros where there are none).
            order: how many times the result will be differentiated (0, 1, 2).
            start: where to start, in place of what the options say.
        """


set_base("training_mode", DensityMode)


def initial_state(
    problem: FixedPointProblem,
    reference: ScfState,
    options: ScfOptions,
    start: Start | None = None,
) -> ScfState:
    """The density and Fermi level to start from: as given, or what the options ask for."""
    if start is not None:
        return start.resolve(problem)
    if options.initial_density == "local_guess":
        density = problem.local_density
    elif options.initial_density == "from_data":
        density = reference.density
    else:
        density = torch.zeros_like(problem.local_density)
    if options.initial_fermi_level == "from_data":
        level = reference.fermi_level
    elif options.initial_fermi_level == "zero":
        level = torch.zeros_like(reference.fermi_level)
    else:
        level = torch.full_like(reference.fermi_level, float(options.initial_fermi_level))
    return ScfState(density, level)
