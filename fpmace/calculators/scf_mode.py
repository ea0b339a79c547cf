"""The self-consistent mode as inference runs it, and what is said when a loop fails."""

from __future__ import annotations

import warnings
from dataclasses import replace

from fpmace.density_modes.solved import SelfConsistent
from fpmace.errors import ScfError
from fpmace.scf.options import ScfOptions
from fpmace.scf.state import ScfResult, ScfStatus

_ADVICE = (
    "try initial_density 'local_guess', solver 'newton_krylov' or 'linear' with a small "
    "mixing_parameter, and check total_charge, external_field and the geometry"
)
_SHOWN_STEPS = 6
_RUNAWAY = (ScfStatus.DIVERGED, ScfStatus.NONFINITE, ScfStatus.NO_SOLUTION)
"""Ends that leave nothing to compute with."""


class InferenceScf(SelfConsistent):
    """The converged solution, with checks before any derivative is taken.

    Args:
        scf: settings of the loop.
        strict: raise on every failure instead of only on those without a usable density.
        tolerant: never raise; the caller looks at the status.
    """

    def __init__(
        self,
        *,
        scf: ScfOptions,
        strict: bool = False,
        tolerant: bool = False,
    ) -> None:
        super().__init__(scf=replace(scf, on_failure="ignore"))
        self.strict, self.tolerant = strict, tolerant

    def refuse(self, result: ScfResult) -> None:
        if self.tolerant:
            return
        for graph, status in enumerate(result.status.tolist()):
            if status in _RUNAWAY or (self.strict and status != ScfStatus.CONVERGED):
                raise ScfError(describe_failure(result, graph))


def describe_failure(result: ScfResult, graph: int = 0) -> str:
    """One line: how the loop ended, the last density changes, what to try."""
    status = int(result.status[graph])
    unfinished = status in (ScfStatus.MAX_STEPS, ScfStatus.STALLED)
    line = f"SCF {'not converged: ' if unfinished else ''}{result.describe(graph)}"
    changes = density_changes(result, graph)
    if changes:
        shown = ", ".join(f"{value:.1e}" for value in changes[-_SHOWN_STEPS:])
        line += f" (density changes of the last passes: {shown})"
    if unfinished:
        return f"{line}; raise num_scf_steps or scf_tolerance, or {_ADVICE}"
    return f"{line}; {_ADVICE}"


def density_changes(result: ScfResult, graph: int = 0) -> list[float]:
    """Mean absolute density change of each pass of one graph; empty without a history."""
    if result.history is None:
        return []
    steps = int(result.n_steps[graph])
    return [float(item[graph]) for item in result.history.density_change[:steps]]


def charge_errors(result: ScfResult, graph: int = 0) -> list[float]:
    """Charge error after each pass of one graph, e; empty without a history."""
    if result.history is None:
        return []
    steps = int(result.n_steps[graph])
    return [float(item[graph]) for item in result.history.charge_error[:steps]]


def report_unconverged(result: ScfResult, policy: str, graph: int = 0) -> None:
    """Apply ``on_failure`` to a graph that ran out of steps or stalled.

    Raises:
        ScfError: if the policy is ``raise``.
    """
    if bool(result.converged[graph]) or policy == "ignore":
        return
    message = describe_failure(result, graph)
    if policy == "raise":
        raise ScfError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=4)
