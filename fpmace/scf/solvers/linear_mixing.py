"""Linear mixing, with the Fukui redistribution at constant charge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from fpmace.annotations import Doc, Positive, Unit
from fpmace.registry import register_scf_solver
from fpmace.scf.options import FermiStep, Mixing, ScfOptions
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.solvers.base import Report, Solver


@dataclass(frozen=True, slots=True)
class _State:
    density: Tensor
    previous: Tensor
    fermi_level: Tensor
    mixing: float


@dataclass(frozen=True, slots=True)
class _Mixed:
    """The mixed density, the same with the charge error handed out, and the next Fermi level."""

    density: Tensor
    corrected: Tensor
    fermi_level: Tensor


@register_scf_solver("linear")
class LinearMixing(Solver[_State, _Mixed]):
    """Linear mixing: density <- density + mixing (G(density) - density).

    At constant charge the charge error is handed to the atoms in proportion to their Fukui
    functions, and the Fermi level follows by a Newton step of at most ``max_fermi_step``.
    """

    differentiable = True

    def __init__(
        self,
        *,
        mixing_parameter: Mixing = 0.3,
        max_fermi_step: FermiStep = 1.0,
        min_charge_response: Annotated[
            Positive,
            Unit("e/V"),
            Doc("smallest dQ/dmu that the step of the Fermi level is computed with"),
        ] = 1e-6,
    ) -> None:
        self.mixing_parameter = mixing_parameter
        self.max_fermi_step = max_fermi_step
        self.min_charge_response = min_charge_response

    def start(
        self, problem: FixedPointProblem, density: Tensor, fermi_level: Tensor, options: ScfOptions
    ) -> _State:
        mixing = options.mixing_parameter or self.mixing_parameter
        corrected = density
        if problem.target_charge is not None:
            _, _, chi = problem.evaluate_with_fukui(
                density, fermi_level, create_graph=torch.is_grad_enabled()
            )
            corrected = self._redistribute(problem, density, chi, problem.sum(chi))
        return _State(corrected, density, fermi_level, mixing)

    def evaluate(
        self, problem: FixedPointProblem, state: _State, *, last: bool
    ) -> tuple[Report, _Mixed]:
        if problem.target_charge is None:
            return self._evaluate_fermi(problem, state)
        return self._evaluate_charge(problem, state, last=last)

    def advance(
        self, problem: FixedPointProblem, state: _State, found: _Mixed, active: Tensor
    ) -> _State:
        moving = active[problem.batch].unsqueeze(-1)
        return replace(
            state,
            density=torch.where(moving, found.corrected, state.density),
            previous=found.density,
            fermi_level=torch.where(active, found.fermi_level, state.fermi_level),
        )

    def _evaluate_fermi(self, problem: FixedPointProblem, state: _State) -> tuple[Report, _Mixed]:
        level = state.fermi_level
        new, features = problem.evaluate_differentiably(state.density, level)
        mixed = state.density + state.mixing * (new - state.density)
        change = problem.mean_abs(mixed - state.density)
        report = Report(
            mixed,
            level,
            level,
            features,
            change,
            problem.charge_error(mixed),
            problem.mean_abs(new - state.density),
        )
        return report, _Mixed(mixed, mixed, level)

    def _evaluate_charge(
        self, problem: FixedPointProblem, state: _State, *, last: bool
    ) -> tuple[Report, _Mixed]:
        new, features, chi = problem.evaluate_with_fukui(
            state.density, state.fermi_level, create_graph=torch.is_grad_enabled()
        )
        total = problem.sum(chi)
        mixed = state.density + state.mixing * (new - state.density)
        error = problem.charge_error(mixed)
        shift = self._fermi_shift(error, total, clamp=not last)
        level = state.fermi_level + shift
        change = problem.mean_abs(mixed - state.previous)
        residual = problem.mean_abs(new - state.density)
        report = Report(mixed, state.fermi_level, level, features, change, error, residual)
        return report, _Mixed(mixed, self._redistribute(problem, mixed, chi, total), level)

    def _fermi_shift(self, error: Tensor, total: Tensor, *, clamp: bool) -> Tensor:
        responsive = total.abs() >= self.min_charge_response
        safe = torch.where(responsive, total, torch.ones_like(total))
        shift = torch.where(responsive, -error / safe, -torch.ones_like(total))
        return shift.clamp(-self.max_fermi_step, self.max_fermi_step) if clamp else shift

    @staticmethod
    def _redistribute(
        problem: FixedPointProblem, density: Tensor, chi: Tensor, total: Tensor
    ) -> Tensor:
        # Where nothing answers to the level the charge stays off, which the status then says.
        fukui = chi / torch.where(total != 0, total, torch.inf)[problem.batch]
        missing = -problem.charge_error(density)
        added = fukui * missing[problem.batch]
        return torch.cat([(density[:, 0] + added).unsqueeze(-1), density[:, 1:]], dim=-1)
