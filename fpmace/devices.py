"""Where tensors live."""

from __future__ import annotations

import torch

from fpmace.errors import ConfigError


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ConfigError: naming the devices there are.
    """
    if not device.startswith("cuda"):
        return
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
