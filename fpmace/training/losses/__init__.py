"""Losses: registered terms of the training objective, and their weighted sum."""

from fpmace.training.losses import molecules, potentials, response, robust, stability, standard
from fpmace.training.losses.base import (
    Loss,
    LossSum,
    LossTerm,
    build_losses,
    check_losses,
    raise_problems,
)

__all__ = [
    "Loss",
    "LossSum",
    "LossTerm",
    "build_losses",
    "check_losses",
    "molecules",
    "potentials",
    "raise_problems",
    "response",
    "robust",
    "stability",
    "standard",
]
