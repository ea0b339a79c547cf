"""Settings of a self-consistency solve."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fpmace import registry
from fpmace.annotations import Mismatch, convert, mismatch_text
from fpmace.errors import ConfigError, suggestion

SMALLEST_TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-7}
"""Smallest density change (e Angstrom^l) that a loop can be asked to reach in a precision."""

InitialDensity = Literal["local_guess", "from_data", "zero"]
InitialFermiLevel = Literal["zero", "from_data"]


@dataclass(frozen=True)
class ScfOptions:
    """What is solved and when to stop; how, is up to the solver.

    Attributes:
        solver: a registered SCF solver, as a name or ``{"type": name, ...options}``.
        num_scf_steps: limit on map evaluations: at most ``num_scf_steps - 1`` passes, so that
            the numbers match those of earlier codes.
        scf_tolerance: a graph is converged when the mean absolute change of its density
            coefficients in a pass is below this (e Angstrom^l).
        charge_tolerance: and, at constant charge, its charge error is below this (e).
        residual_tolerance: and the mean absolute ``G(density) - density`` is below this; None:
            not asked for. Only linear mixing takes less than this residual in a pass.
        constant_charge: true: fixed total charge, the Fermi level follows; false: fixed Fermi
            level, the charge follows.
        mixing_parameter: fraction of the density change taken in a pass of linear mixing or as
            damping of Anderson mixing; None leaves it to the solver.
        initial_density: ``local_guess`` (the field-independent density), ``from_data``
            (reference multipoles) or ``zero``.
        initial_fermi_level: ``zero``, ``from_data`` or a number in eV.
        use_autograd_forces: false (constant Fermi level with ``unroll_scf`` only): derivatives
            through the last passes alone, an approximation.
        on_failure: what to do when a graph does not converge: ``raise``, ``warn``, ``ignore``.
        on_unconverged: policy of a training step with unconverged graphs: ``skip`` their
            contribution, fall back to ``unroll``, ``raise``, or ``use`` the result as it is.
        unroll_steps: passes of linear mixing through which ``unroll`` differentiates.
        max_charge_per_atom: a graph with more net charge per atom (e) counts as diverged, unless
            the solver finds its way back by itself (Anderson and Newton-Krylov do).
        max_density_change: so does one whose mean density change in a pass exceeds this.
        history: what the result records per pass: ``none``, ``absolute_change``,
            ``full_history``.
        diagnostics: estimate the eigenvalues of the map at the answer
            (:mod:`fpmace.scf.diagnostics`); costs 20 products with its Jacobian.
    """

    solver: str | dict[str, Any] = "auto"
    num_scf_steps: int = 100
    scf_tolerance: float = 1e-6
    charge_tolerance: float = 1e-3
    residual_tolerance: float | None = None
    constant_charge: bool = True
    mixing_parameter: float | None = None
    initial_density: InitialDensity = "local_guess"
    initial_fermi_level: InitialFermiLevel | float = "zero"
    use_autograd_forces: bool = True
    on_failure: Literal["raise", "warn", "ignore"] = "warn"
    on_unconverged: Literal["skip", "unroll", "raise", "use"] = "skip"
    unroll_steps: int = 15
    max_charge_per_atom: float = 10.0
    max_density_change: float = 5.0
    history: Literal["none", "absolute_change", "full_history"] = "absolute_change"
    diagnostics: bool = False

    def __post_init__(self) -> None:
        _positive("num_scf_steps", self.num_scf_steps - 1, self.num_scf_steps, "at least 2")
        _positive("scf_tolerance", self.scf_tolerance, self.scf_tolerance, "above 0")
        _positive("charge_tolerance", self.charge_tolerance, self.charge_tolerance, "above 0")
        _positive("unroll_steps", self.unroll_steps - 1, self.unroll_steps, "at least 2")
        if self.residual_tolerance is not None:
            _positive(
                "residual_tolerance", self.residual_tolerance, self.residual_tolerance, "above 0"
            )
        if self.mixing_parameter is not None and not 0.0 < self.mixing_parameter <= 1.0:
            raise ConfigError(
                f"scf.mixing_parameter: expected a number in (0, 1], got {self.mixing_parameter}"
            )
        _choice("initial_density", self.initial_density, ("local_guess", "from_data", "zero"))
        if not isinstance(self.initial_fermi_level, (int, float)):
            _choice("initial_fermi_level", self.initial_fermi_level, ("zero", "from_data"))
        _choice("on_failure", self.on_failure, ("raise", "warn", "ignore"))
        _choice("on_unconverged", self.on_unconverged, ("skip", "unroll", "raise", "use"))
        _choice("history", self.history, ("none", "absolute_change", "full_history"))


def check_precision(options: ScfOptions, dtype: torch.dtype) -> None:
    """Refuse tolerances that the precision cannot resolve.

    Raises:
        ConfigError: naming the tolerance and the smallest one that is allowed.
    """
    smallest = SMALLEST_TOLERANCE[dtype]
    for name in ("scf_tolerance", "residual_tolerance"):
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ConfigError(
                f"scf.{name}: {value:g} is below what {str(dtype).removeprefix('torch.')} "
                f"resolves; use {smallest:g} or more, or a model in float64"
            )


def _positive(name: str, test: float, value: float, expected: str) -> None:
    if not test > 0:
        raise ConfigError(f"scf.{name}: expected a value {expected}, got {value}")


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"scf.{name}: got {value!r}, allowed: {', '.join(allowed)}")


def check_scf(given: Any, where: str) -> dict[str, Any]:
    """Check an ``scf`` block against :class:`fpmace.scf.options.ScfOptions`.

    Raises:
        ConfigError: for an unknown key or a value of the wrong type or range.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"expects a mapping of SCF settings, got {given!r}", where=where)
    hints = typing.get_type_hints(ScfOptions)
    result: dict[str, Any] = {}
    for key, value in given.items():
        if key not in hints:
            raise ConfigError(
                f"no SCF setting '{key}'{suggestion(str(key), hints)} "
                f"(accepts: {', '.join(hints)})",
                where=f"{where}.{key}",
            )
        try:
            result[key] = convert(value, hints[key])
        except Mismatch:
            text = mismatch_text(value, hints[key])
            raise ConfigError(text, where=f"{where}.{key}") from None
    if "solver" in result:
        solver = registry.normalise("scf_solver", result["solver"], where=f"{where}.solver")
        result["solver"] = solver
    try:
        ScfOptions(**result)
    except ConfigError as error:
        text = str(error).removeprefix("scf.")
        raise ConfigError(text, where=where) from error
    return result
