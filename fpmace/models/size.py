"""Lower bounds on the memory of models and batches, so that absurd sizes are refused early."""

from __future__ import annotations

import os

import torch
from e3nn.o3 import Irreps

from fpmace.annotations import Options
from fpmace.errors import ConfigError

_COPIES = 4
"""Weights, gradients, and two moments of the optimizer."""
_SIZES = ("hidden_irreps", "max_ell", "num_interactions", "radial_MLP")


def machine_memory(device: torch.device) -> int:
    """All memory of a GPU, or of the machine, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def least_weights(options: Options) -> int:
    """Numbers that the linear maps and radial networks of a backbone have at least."""
    if not set(_SIZES) <= set(options):
        return 0
    linear = sum(item.mul**2 for item in Irreps(options["hidden_irreps"]))
    radial = options["radial_MLP"][-1] * _channels(options) * (options["max_ell"] + 1)
    return int(options["num_interactions"] * (linear + radial))


def least_activations(options: Options, n_atoms: float, n_edges: float) -> float:
    """Numbers that one interaction holds at least: radial weights of edges, messages to atoms."""
    if not set(_SIZES) <= set(options):
        return 0.0
    orders = options["max_ell"] + 1
    return _channels(options) * (n_edges * orders + n_atoms * orders**2)


def _channels(options: Options) -> int:
    return max(item.mul for item in Irreps(options["hidden_irreps"]))


def check_weights(options: Options) -> None:
    """Refuse a model whose weights alone, in float32, are more than the machine holds.

    Raises:
        ConfigError: with the size and the options that make it.
    """
    _check(4 * least_weights(options), torch.device("cpu"), "the model needs", options)


def check_training(
    options: Options,
    *,
    n_atoms: float,
    n_edges: float,
    batch_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Refuse a training of which one step cannot fit, by lower bounds.

    Args:
        options: of the model.
        n_atoms, n_edges: of a mean batch.

    Raises:
        ConfigError: with the sizes and the options that make them.
    """
    size = dtype.itemsize
    weights = _COPIES * size * least_weights(options)
    _check(weights, device, "weights, gradients and optimizer need", options)
    batch = size * least_activations(options, n_atoms, n_edges)
    what = (
        f"a batch of {batch_size} configurations ({n_atoms:.0f} atoms, {n_edges:.0f} edges) needs"
    )
    _check(batch, device, what, options, f"batch_size (now {batch_size}), r_max, ")


def _check(
    needed: float, device: torch.device, what: str, options: Options, remedy: str = ""
) -> None:
    there = machine_memory(device)
    if needed > there:
        sizes = ", ".join(f"{name} (now {options[name]})" for name in _SIZES)
        raise ConfigError(
            f"{what} at least {needed / 2**30:.3g} GiB, and {device} has {there / 2**30:.3g}; "
            f"lower {remedy}{sizes}",
            where="memory",
        )
