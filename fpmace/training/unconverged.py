"""What an unconverged structure contributes to the loss of a training step."""

from __future__ import annotations

from dataclasses import replace

import torch

from fpmace.data.batch import Batch
from fpmace.density_modes.base import DensityMode
from fpmace.observables.types import Observables


def without_unconverged(batch: Batch, prediction: Observables, mode: DensityMode | None) -> Batch:
    """Give structures whose solve did not converge the weight zero, if the mode asks to skip them.

    With ``on_unconverged: unroll`` those that the unrolled loop lost as well are left out. A
    truncated loop (``unroll_scf``) is meant to stop early: its structures all count.
    """
    if mode is None or mode.scf is None or not mode.solves:
        return batch
    if prediction.scf is None or mode.scf.on_unconverged not in ("skip", "unroll"):
        return batch
    weight = torch.where(prediction.scf.usable, batch.weight, 0.0)
    return replace(batch, weight=weight)
