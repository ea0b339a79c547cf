"""Derivatives through the passes of the loop."""

from __future__ import annotations

from dataclasses import replace

import torch

from fpmace.density_modes.base import DensityMode, Solution, Start, initial_state
from fpmace.errors import ConfigError
from fpmace.registry import register_density_mode
from fpmace.scf.driver import make_solver, solve
from fpmace.scf.options import ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.state import ScfResult, ScfState


@register_density_mode("unroll_scf")
class UnrolledScf(DensityMode):
    """Derivatives through the passes of the SCF loop; memory grows with their number.

    ``checkpoint`` keeps only the densities between passes and repeats each pass when it is
    differentiated: less memory where the loss has no forces, at most the cost of one more loop.
    """

    def __init__(
        self, *, scf: ScfOptions, final_evaluation: bool = False, checkpoint: bool = False
    ) -> None:
        if scf.solver == "auto":
            scf = replace(scf, solver="linear")
        self.scf: ScfOptions = scf
        self.final_evaluation = final_evaluation
        self.checkpoint = checkpoint
        self.solver = make_solver(scf)
        if scf.constant_charge and not scf.use_autograd_forces:
            raise ConfigError(
                "fixed_point_training_options.scf.use_autograd_forces: false has no meaning for "
                "unroll_scf at constant charge, which differentiates all passes; leave it out, "
                "or use mode implicit for forces at a held density"
            )
        if not self.solver.differentiable:
            raise ConfigError(
                f"fixed_point_training_options.scf.solver: unroll_scf cannot differentiate "
                f"through {scf.solver!r}; use 'linear', or mode implicit"
            )

    def run(
        self,
        problem: FixedPointProblem,
        reference: ScfState,
        *,
        order: int,
        start: Start | None = None,
    ) -> Solution:
        options = self.scf
        detach = 0
        if not options.use_autograd_forces:
            detach = options.num_scf_steps - 2
        problem = replace(problem, recompute=self.checkpoint)
        first = initial_state(problem, reference, options, start)
        with torch.set_grad_enabled(order > 0 and torch.is_grad_enabled()):
            result = solve(
                problem,
                first,
                options,
                solver=self.solver,
                detach_before=detach,
                explain=False,
            )
            features = result.features
            if self.final_evaluation:
                level = problem.spread(result.fermi_level)
                features = problem.features(result.density, level)
        return Solution(result.density, result.fermi_level, features, _detached(result))


def _detached(result: ScfResult) -> ScfResult:
    return replace(
        result,
        density=result.density.detach(),
        fermi_level=result.fermi_level.detach(),
        features=result.features.detach(),
    )
