"""What a run was computed with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from fpmace import __version__

_PACKAGES = ("torch", "e3nn", "torch-ema", "ase", "matscipy", "numpy", "h5py", "matplotlib")


def environment(device: torch.device | str = "cpu", n_processes: int = 1) -> dict[str, str]:
    """Versions, machine and device, by name, as text."""
    place = torch.device(device)
    found = {
        "fpmace": __version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "threads of torch": str(torch.get_num_threads()),
        "processes": str(n_processes),
        "device": str(place),
    }
    if place.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(place)
        found["CUDA"] = str(torch.version.cuda)
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
