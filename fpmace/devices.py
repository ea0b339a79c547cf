"""Where tensors live."""

from __future__ import annotations

import re

import torch

from fpmace.errors import ConfigError


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ConfigError: naming the devices there are.
    """
    if device == "cpu":
        return
    if re.fullmatch(r"cuda(:\d{1,3})?", device) is None:
        raise ConfigError(f"'{device}' is not a device; use cpu, cuda or cuda:N", where="device")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"'{device}' is not available: torch sees no CUDA device; use device: cpu",
            where="device",
        )
    count = torch.cuda.device_count()
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise ConfigError(
            f"'{device}' is not available: torch sees {count} CUDA device(s), cuda:0 to "
            f"cuda:{count - 1}",
            where="device",
        )
