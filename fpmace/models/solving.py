"""The density of a model that solves a self-consistency, found as the density mode says."""

from __future__ import annotations

from torch import nn

from fpmace.data.batch import Batch
from fpmace.density_modes.base import Solution
from fpmace.models.base import Request
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState


def find_density(
    problem: FixedPointProblem, reference: ScfState, request: Request, batch: Batch
) -> Solution:
    """Run the density mode of a request; ``reference`` is the solution that the data has."""
    mode = request.density_mode
    if request.training:
        reference = mode.training_reference(reference, problem, batch)
    begin = {} if request.start is None else {"start": request.start}
    return mode.run(problem, reference, order=request.order, **begin)


def reference_state(batch: Batch, n: int) -> ScfState:
    """Density [n_atoms, n] and Fermi level of the data; zeros where the data has none."""
    density = batch.labels.get("atomic_multipoles")
    if density is None:
        density = batch.positions.new_zeros(batch.n_atoms, n)
    missing = max(0, n - density.shape[1])
    return ScfState(nn.functional.pad(density[:, :n], (0, missing)), batch.fermi_level)
