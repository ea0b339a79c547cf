"""Where tensors live."""

from __future__ import annotations

import re

import torch

from fpmace.distributed.process import Process
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


def own_device(device: str, process: Process) -> str:
    """The device of one of several processes: each takes a GPU of its own.

    Raises:
        ConfigError: one GPU is named for all processes.
    """
    if process.alone or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise ConfigError(
            f"'{device}' is one GPU for {process.world_size} processes; give cuda, of which each "
            "process takes its own",
            where="device",
        )
    check_device(device)
    index = process.local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return f"cuda:{index}"
