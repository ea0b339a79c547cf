"""Constant tensors made once per precision and device, and uploads that do not wait."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def _tensor(values: tuple[object, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def numbers(values: tuple[object, ...], like: Tensor) -> Tensor:
    """A constant (numbers, or tuples of them), in precision and on the device of ``like``."""
    return _tensor(values, like.dtype, like.device)


def columns(values: Tensor, chosen: tuple[int, ...]) -> Tensor:
    """``values[..., chosen]``."""
    return values.index_select(-1, _tensor(chosen, torch.int64, values.device))


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting for what it is doing."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
