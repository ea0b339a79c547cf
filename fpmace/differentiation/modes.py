"""Former home of :mod:`fpmace.density_modes`; its names stay importable from here."""

from fpmace.density_modes.base import DensityMode, Solution, Start, initial_state
from fpmace.density_modes.direct import Direct
from fpmace.density_modes.solved import (
    Implicit,
    LinearizeSolve,
    LinearizeSolveOneStep,
    SelfConsistent,
)
from fpmace.density_modes.unrolled import UnrolledScf

TrainingMode = DensityMode

__all__ = [
    "DensityMode",
    "Direct",
    "Implicit",
    "LinearizeSolve",
    "LinearizeSolveOneStep",
    "SelfConsistent",
    "Solution",
    "Start",
    "TrainingMode",
    "UnrolledScf",
    "initial_state",
]
