"""Settings of a self-consistency solve."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from fpmace import registry
from fpmace.annotations import Bounds, Count, Doc, Options, Positive, Unit, check, check_fields
from fpmace.errors import ConfigError, suggestion
from fpmace.registry import Part, PartConfig

LinearTolerance = Annotated[
    float, Bounds(above=0.0, maximum=0.5), Doc("relative residual at which a linear solve stops")
]
LinearIterations = Annotated[
    Count, Doc("products with the Jacobian (or the interaction) in a linear solve, at most")
]
DenseSize = Annotated[
    int,
    Bounds(minimum=0),
    Doc(
        "unknowns (atoms times components) of the largest structure up to which dense factors "
        "are used; 0: never"
    ),
]
Mixing = Annotated[
    float, Bounds(above=0.0, maximum=1.0), Doc("fraction of the density change taken in a pass")
]
FermiStep = Annotated[
    Positive, Unit("eV"), Doc("largest change of the Fermi level in a pass at constant charge")
]

SMALLEST_TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-7}
"""Smallest density change (e Angstrom^l) that a loop can be asked to reach in a precision."""

InitialDensity = Literal["local_guess", "from_data", "zero"]
InitialFermiLevel = Literal["zero", "from_data"]


@dataclass(frozen=True)
class ScfOptions:
    """What is solved and when to stop; how, is up to the solver.

    Raises:
        ConfigError: for a value of the wrong type or range.
    """

    solver: Annotated[PartConfig, Part("scf_solver"), Doc("SCF solver")] = "auto"
    num_scf_steps: Annotated[
        int,
        Bounds(minimum=2),
        Doc(
            "limit on map evaluations: at most num_scf_steps - 1 passes, so that the numbers "
            "match those of earlier codes"
        ),
    ] = 100
    scf_tolerance: Annotated[
        Positive,
        Unit("e Angstrom^l"),
        Doc(
            "a graph is converged when the mean absolute change of its density coefficients in a "
            "pass is below this"
        ),
    ] = 1e-6
    charge_tolerance: Annotated[
        Positive, Unit("e"), Doc("and, at constant charge, its charge error is below this")
    ] = 1e-3
    residual_tolerance: Annotated[
        Positive | None,
        Doc(
            "and the mean absolute G(density) - density is below this; None: not asked for. Only "
            "linear mixing takes less than this residual in a pass"
        ),
    ] = None
    constant_charge: Annotated[
        bool,
        Doc(
            "true: fixed total charge, the Fermi level follows; false: fixed Fermi level, the "
            "charge follows"
        ),
    ] = True
    charge_per: Annotated[
        Literal["structure", "fragment"],
        Doc(
            "what keeps its charge at constant charge: the structure, or each fragment, for "
            "passive rules: atoms with the same number in the array cluster_id, whose formal "
            "charges (array charges) sum to the charge of the fragment"
        ),
    ] = "structure"
    mixing_parameter: Annotated[
        Mixing | None,
        Doc(
            "fraction of the density change taken in a pass of linear mixing or as damping of "
            "Anderson mixing; None leaves it to the solver"
        ),
    ] = None
    initial_density: Annotated[
        InitialDensity,
        Doc(
            "local_guess (the field-independent density), from_data (reference multipoles) or zero"
        ),
    ] = "local_guess"
    initial_fermi_level: Annotated[
        InitialFermiLevel | float, Unit("eV"), Doc("zero, from_data or a number")
    ] = "zero"
    use_autograd_forces: Annotated[
        bool,
        Doc(
            "false: forces and stress at a held density, an approximation; all other derivatives "
            "stay exact. unroll_scf at constant Fermi level: derivatives through the last passes "
            "alone"
        ),
    ] = True
    on_failure: Annotated[
        Literal["raise", "warn", "ignore"], Doc("what to do when a graph does not converge")
    ] = "warn"
    on_unconverged: Annotated[
        Literal["skip", "unroll", "raise", "use"],
        Doc(
            "policy of a training step with unconverged graphs: skip their contribution, fall "
            "back to unroll, raise, or use the result as it is"
        ),
    ] = "skip"
    unroll_steps: Annotated[
        int,
        Bounds(minimum=2),
        Doc("passes of linear mixing through which unroll differentiates"),
    ] = 15
    max_charge_per_atom: Annotated[
        Positive,
        Unit("e"),
        Doc(
            "a graph with more net charge per atom counts as diverged, unless the solver finds "
            "its way back by itself (Anderson and Newton-Krylov do)"
        ),
    ] = 10.0
    max_density_change: Annotated[
        Positive, Doc("so does one whose mean density change in a pass exceeds this")
    ] = 5.0
    history: Annotated[
        Literal["none", "absolute_change", "full_history"], Doc("what the result records per pass")
    ] = "absolute_change"
    diagnostics: Annotated[
        bool,
        Doc(
            "estimate the eigenvalues of the map at the answer; costs 20 products with its "
            "Jacobian"
        ),
    ] = False

    def __post_init__(self) -> None:
        check_fields(self, "scf")


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


def check_scf(given: object, where: str) -> Options:
    """Check an ``scf`` block against :class:`fpmace.scf.options.ScfOptions`.

    Raises:
        ConfigError: for an unknown key or a value of the wrong type or range.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"expects a mapping of SCF settings, got {given!r}", where=where)
    hints = typing.get_type_hints(ScfOptions, include_extras=True)
    result: Options = {}
    for key, value in given.items():
        if key not in hints:
            raise ConfigError(
                f"no SCF setting '{key}'{suggestion(str(key), hints)} "
                f"(accepts: {', '.join(hints)})",
                where=f"{where}.{key}",
            )
        result[key] = check(value, hints[key], where=f"{where}.{key}")
    if "solver" in result:
        solver = registry.normalise("scf_solver", result["solver"], where=f"{where}.solver")
        result["solver"] = solver
    return result
