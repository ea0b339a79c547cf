"""Optimizers by name; all get the parameter groups and the learning rate of a stage."""

from __future__ import annotations

from typing import Annotated

import schedulefree
import torch

from fpmace.annotations import Bounds, Positive
from fpmace.registry import register_optimizer

Groups = list[dict[str, object]]
Decay = Annotated[float, Bounds(minimum=0.0, below=1.0)]


@register_optimizer("adam")
def adam(
    *,
    parameter_groups: Groups,
    lr: float,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: Positive = 1e-8,
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    """Adam with weight decay added to the gradient. Kingma and Ba, arXiv:1412.6980."""
    return torch.optim.Adam(
        parameter_groups, lr=lr, betas=(beta1, beta2), eps=eps, amsgrad=amsgrad
    )


@register_optimizer("adamw")
def adamw(
    *,
    parameter_groups: Groups,
    lr: float,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: Positive = 1e-8,
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay. Loshchilov and Hutter, arXiv:1711.05101."""
    return torch.optim.AdamW(
        parameter_groups, lr=lr, betas=(beta1, beta2), eps=eps, amsgrad=amsgrad
    )


@register_optimizer("schedulefree")
def schedule_free(
    *,
    parameter_groups: Groups,
    lr: float,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: Positive = 1e-8,
    warmup_steps: Annotated[int, Bounds(minimum=0)] = 0,
) -> torch.optim.Optimizer:
    """AdamW that averages its own iterates. Defazio et al., arXiv:2405.15682."""
    return schedulefree.AdamWScheduleFree(
        parameter_groups, lr=lr, betas=(beta1, beta2), eps=eps, warmup_steps=warmup_steps
    )


def use_training_weights(optimizer: torch.optim.Optimizer) -> None:
    """Put the weights that gradients are taken at into the model (schedule-free optimizers)."""
    if isinstance(optimizer, schedulefree.AdamWScheduleFree):
        optimizer.train()


def use_averaged_weights(optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's averaged weights into the model (schedule-free optimizers)."""
    if isinstance(optimizer, schedulefree.AdamWScheduleFree):
        optimizer.eval()
