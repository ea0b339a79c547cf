"""The density of the data, sent once through the map."""

from __future__ import annotations

from typing import Annotated

import torch

from fpmace.annotations import Bounds
from fpmace.data.batch import Batch
from fpmace.data.noise import structure_noise
from fpmace.density_modes.base import DensityMode, Solution, Start
from fpmace.errors import ConfigError
from fpmace.registry import register_density_mode
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfState


@register_density_mode("direct")
class Direct(DensityMode):
    """One evaluation of the map at the reference density and Fermi level; no SCF.

    With ``density_noise`` training evaluates the map at the reference plus noise (standard
    deviation in e Angstrom^l; no charge is added to a structure), so that it learns to lead
    back to the reference from beside it.
    """

    def __init__(self, *, density_noise: Annotated[float, Bounds(minimum=0.0)] = 0.0) -> None:
        self.scf = None
        self.density_noise = density_noise

    @property
    def requires_labels(self) -> tuple[str, ...]:
        return ("charges", "fermi_level")

    def training_reference(
        self, reference: ScfState, problem: FixedPointProblem, batch: Batch
    ) -> ScfState:
        if self.density_noise == 0:
            return reference
        noise = self.density_noise * structure_noise(batch, reference.density)
        gained = problem.charge(noise) / problem.atoms_per_graph
        charges = noise[:, :1] - problem.spread(gained).unsqueeze(-1)
        noise = torch.cat([charges, noise[:, 1:]], dim=-1)
        return ScfState(reference.density + noise, reference.fermi_level)

    def run(
        self,
        problem: FixedPointProblem,
        reference: ScfState,
        *,
        order: int,
        start: Start | None = None,
    ) -> Solution:
        if start is not None:
            raise ConfigError("start: direct evaluates the map at the reference; leave it out")
        level = reference.fermi_level
        density, features = problem.evaluate(reference.density, problem.spread(level))
        return Solution(density, level, features)
