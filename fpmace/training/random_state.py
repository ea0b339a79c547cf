"""State of all random generators as plain tensors and text."""

from __future__ import annotations

import json
import random

import numpy as np
import torch

from fpmace.annotations import Values


def capture() -> Values:
    """State of Python's, NumPy's and torch's global generators."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": json.dumps(random.getstate()),
        "numpy": json.dumps([name, [int(key) for key in keys], position, has_gauss, cached]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(state: Values) -> None:
    """Continue all generators from a captured state; GPUs only where their number is the same."""
    version, internal, gauss = json.loads(state["python"])
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = json.loads(state["numpy"])
    np.random.set_state(  # noqa: NPY002
        (name, np.array(keys, dtype=np.uint32), position, has_gauss, cached)
    )
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def step_seed(seed: int, epoch: int, step: int) -> int:
    """Seed of one step, from which the same numbers follow however the step is shared out."""
    state = np.random.SeedSequence([seed, epoch, step]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def seed_all(seed: int) -> None:
    """Seed every global generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
