"""Exponential moving average of the weights, and the weights a model is judged by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch_ema import ExponentialMovingAverage

from fpmace.errors import ConfigError
from fpmace.training.optimizers import use_averaged_weights, use_training_weights


def make_average(model: nn.Module, decay: float) -> ExponentialMovingAverage:
    """Average of the trainable parameters, warmed up as ``min(decay, (1 + n) / (10 + n))``.

    Raises:
        ConfigError: if ``decay`` is not in (0, 1).
    """
    if not 0.0 < decay < 1.0:
        raise ConfigError(f"ema_decay: expected a number between 0 and 1, got {decay!r}")
    return ExponentialMovingAverage(trainable(model), decay=decay)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that the optimizer changes."""
    return [item for item in model.parameters() if item.requires_grad and item.numel() > 0]


@contextmanager
def evaluation_weights(
    optimizer: torch.optim.Optimizer, average: ExponentialMovingAverage | None
) -> Iterator[None]:
    """Within the block the model holds its averaged weights; afterwards the raw ones again."""
    use_averaged_weights(optimizer)
    try:
        if average is None:
            yield
        else:
            with average.average_parameters():
                yield
    finally:
        use_training_weights(optimizer)
