"""ASE calculator of the local models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fpmace.calculators.base import ModelCalculator
from fpmace.calculators.loading import require_local

_PROPERTIES = ["energy", "free_energy", "energies", "forces", "stress"]


class MACECalculator(ModelCalculator):
    """Energy, forces and stress of a MACE or ScaleShiftMACE model.

    Args:
        model_path: a model file, or a model (copied).
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32`` or ``float64``; that of the file if not given.
        skin: Angstrom by which neighbour lists are longer, so that they can be kept.

    Raises:
        ModelFileError: the file is not a local model of fpmace.
    """

    implemented_properties = _PROPERTIES
    default_outputs = ("energy",)

    def __init__(
        self,
        model_path: str | Path | nn.Module,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        *,
        skin: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(model_path, device=device, dtype=dtype, skin=skin, **options)
        require_local(self.model, model_path)
