"""The one loop over SCF steps: stopping tests, freezing, guards, history, failure policy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fpmace.errors import ScfError
from fpmace.registry import build, describe
from fpmace.scf.options import ScfOptions, check_precision
from fpmace.scf.problem import FixedPointProblem
from fpmace.scf.solvability import without_solution
from fpmace.scf.solvers.base import AnySolver, Phase, Report, SolvePlan
from fpmace.scf.spectrum import diagnose
from fpmace.scf.state import ScfHistory, ScfResult, ScfState, ScfStatus


def make_solver(options: ScfOptions) -> SolvePlan:
    """Build the solver, or plan of solvers, that the options name."""
    plan: SolvePlan = build("scf_solver", options.solver, where="scf.solver")
    return plan


@dataclass
class _Progress:
    """What the loop knows of each graph so far."""

    density: Tensor
    fermi_level: Tensor
    features: Tensor | None
    status: Tensor
    n_steps: Tensor
    change: Tensor
    residual: Tensor
    charge_error: Tensor
    solver: list[str]
    history: ScfHistory | None = None
    n_maps: int = 0
    n_matvecs: int = 0

    @property
    def active(self) -> Tensor:
        return self.status == int(ScfStatus.MAX_STEPS)

    def remember_state(self, options: ScfOptions) -> None:
        """Add density and Fermi level to a full history."""
        if self.history is not None and options.history == "full_history":
            self.history.densities.append(self.density.detach())
            self.history.fermi_levels.append(self.fermi_level.detach())

    def result(self, options: ScfOptions) -> ScfResult:
        """What is known, as the answer."""
        if self.features is None:
            raise RuntimeError("the solver made no pass")
        return ScfResult(
            density=self.density,
            fermi_level=self.fermi_level,
            features=self.features,
            status=self.status,
            n_steps=self.n_steps,
            density_change=self.change,
            charge_error=self.charge_error,
            n_map_evaluations=self.n_maps,
            n_matvecs=self.n_matvecs,
            solver=self.solver,
            history=self.history,
            residual=self.residual,
            met=_met(self, options),
        )


def solve(
    problem: FixedPointProblem,
    start: ScfState,
    options: ScfOptions,
    *,
    solver: SolvePlan | None = None,
    detach_before: int = 0,
    explain: bool = True,
) -> ScfResult:
    """Iterate to self-consistency.

    A graph that converged, diverged or became non-finite is frozen while the others go on.
    Derivatives follow torch's grad mode: call under ``torch.no_grad()`` for a plain solve.

    Args:
        problem: what to solve.
        start: initial density and Fermi level.
        options: limits, thresholds and policy.
        solver: overrides ``options.solver``.
        detach_before: passes with a smaller index are taken out of the autograd graph.
        explain: find out whether unconverged graphs have a solution at all (a dense
            factorisation each, see :mod:`fpmace.scf.solvability`); false where nobody is told.

    Raises:
        ConfigError: if the solver cannot do a problem of this kind, or the precision cannot
            resolve a tolerance.
        ScfError: if a graph fails and ``options.on_failure`` is ``raise``.
    """
    check_precision(options, start.density.dtype)
    plan = solver or make_solver(options)
    progress = _begin(problem, start, options)
    for index, phase in enumerate(plan.phases(problem, options)):
        if index > 0:
            _reopen(problem, progress, start)
        if not bool(progress.active.any()):
            break
        _run_phase(problem, phase, progress, options, detach_before)
    result = progress.result(options)
    if explain:
        result = replace(result, status=without_solution(problem, result.status, start))
    if options.diagnostics:
        result = replace(result, diagnostics=diagnose(problem, result))
    report_failure(result, options)
    return result


def _begin(problem: FixedPointProblem, start: ScfState, options: ScfOptions) -> _Progress:
    n, device = problem.n_graphs, start.density.device
    large = torch.full((n,), torch.inf, dtype=start.density.dtype, device=device)
    progress = _Progress(
        density=start.density,
        fermi_level=start.fermi_level,
        features=None,
        status=torch.full((n,), int(ScfStatus.MAX_STEPS), device=device),
        n_steps=torch.zeros(n, dtype=torch.int64, device=device),
        change=large,
        residual=large,
        charge_error=large,
        solver=[""] * n,
        history=None if options.history == "none" else ScfHistory(),
    )
    progress.remember_state(options)
    return progress


def _reopen(problem: FixedPointProblem, progress: _Progress, start: ScfState) -> None:
    """Let the next solver try the graphs that failed; those that ran away start afresh."""
    lost = progress.status > int(ScfStatus.MAX_STEPS)
    atoms = lost[problem.batch].unsqueeze(-1)
    progress.density = torch.where(atoms, start.density, progress.density)
    progress.fermi_level = torch.where(lost, start.fermi_level, progress.fermi_level)
    unsolved = torch.full_like(progress.status, int(ScfStatus.MAX_STEPS))
    progress.status = torch.where(lost, unsolved, progress.status)


def _run_phase(
    problem: FixedPointProblem,
    phase: Phase,
    progress: _Progress,
    options: ScfOptions,
    detach_before: int,
) -> None:
    begun, solver = progress.active, phase.solver
    name = phase.name or _name(solver)
    progress.solver = [
        (f"{old} then {name}" if old else name) if running else old
        for running, old in zip(begun.tolist(), progress.solver, strict=True)
    ]
    with torch.set_grad_enabled(torch.is_grad_enabled() and detach_before <= 0):
        state = solver.start(problem, progress.density, progress.fermi_level, options)
    for step in range(phase.limit):
        with torch.set_grad_enabled(torch.is_grad_enabled() and step >= detach_before):
            last = step == phase.limit - 1
            report, found = solver.evaluate(problem, state, last=last)
            progress.n_maps += 1
            _record(problem, solver, report, progress, options)
            if last or not bool(progress.active.any()):
                break
            state = solver.advance(problem, state, found, progress.active)
    progress.n_matvecs += solver.n_matvecs(state)


def _record(
    problem: FixedPointProblem,
    solver: AnySolver,
    report: Report,
    progress: _Progress,
    options: ScfOptions,
) -> None:
    """Take the report over for the active graphs and decide which of them stop."""
    active = progress.active
    with torch.no_grad():
        change, error = report.density_change.detach(), report.charge_error.detach()
        residual = change if report.residual is None else report.residual.detach()
        finite = torch.isfinite(change) & torch.isfinite(error)
        converged = (change < options.scf_tolerance) & (error.abs() < options.charge_tolerance)
        if options.residual_tolerance is not None:
            converged = converged & (residual < options.residual_tolerance)
        status = torch.full_like(progress.status, int(ScfStatus.MAX_STEPS))
        if not solver.recovers:
            status[_out_of_bounds(problem, report, options)] = int(ScfStatus.DIVERGED)
        if report.gave_up is not None:
            status[report.gave_up] = int(ScfStatus.STALLED)
        status[converged] = int(ScfStatus.CONVERGED)
        lost = ~finite if report.gave_up is None else ~finite & report.gave_up
        status[lost] = int(ScfStatus.NONFINITE)
        progress.status = torch.where(active, status, progress.status)
        progress.n_steps = progress.n_steps + active
        progress.change = torch.where(active, change, progress.change)
        progress.residual = torch.where(active, residual, progress.residual)
        progress.charge_error = torch.where(active, error, progress.charge_error)
    taken = active & finite
    atoms = taken[problem.batch].unsqueeze(-1)
    level = torch.where(converged, report.fermi_level, report.fermi_next)
    progress.density = _select(taken, atoms, report.density, progress.density)
    progress.fermi_level = _select(taken, taken, level, progress.fermi_level)
    if progress.features is None:
        progress.features = report.features
    else:
        progress.features = _select(taken, atoms, report.features, progress.features)
    if progress.history is not None:
        progress.history.density_change.append(progress.change)
        progress.history.charge_error.append(progress.charge_error)
    progress.remember_state(options)


def _out_of_bounds(problem: FixedPointProblem, report: Report, options: ScfOptions) -> Tensor:
    """[n_graphs] where charge or density change say that the iteration ran away."""
    charge = problem.charge(report.density.detach()).abs() / problem.atoms_per_graph
    change = report.density_change.detach()
    return (charge > options.max_charge_per_atom) | (change > options.max_density_change)


def _met(progress: _Progress, options: ScfOptions) -> dict[str, Tensor]:
    met = {
        "scf_tolerance": progress.change < options.scf_tolerance,
        "charge_tolerance": progress.charge_error.abs() < options.charge_tolerance,
    }
    if options.residual_tolerance is not None:
        met["residual_tolerance"] = progress.residual < options.residual_tolerance
    return met


def _select(taken: Tensor, mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return new if bool(taken.all()) else torch.where(mask, new, old)


def report_failure(result: ScfResult, options: ScfOptions) -> None:
    """Apply the failure policy.

    Raises:
        ScfError: if a graph failed and the policy is ``raise``.
    """
    failed = torch.nonzero(~result.converged).flatten().tolist()
    if not failed or options.on_failure == "ignore":
        return
    worst = failed[0]
    message = (
        f"SCF not converged for {len(failed)} of {len(result.status)} structures (tolerance "
        f"{options.scf_tolerance:g}); structure {worst}: {result.describe(worst)}; try solver "
        "'auto', more num_scf_steps, or a smaller mixing_parameter"
    )
    if options.on_failure == "raise":
        raise ScfError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _name(solver: AnySolver) -> str:
    for entry in describe("scf_solver"):
        if entry.target is type(solver):
            return entry.name
    return type(solver).__name__
