"""Models as calculators and evaluation use them: loaded, frozen, on a device, the right kind."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fpmace.annotations import check
from fpmace.calculators.inference import Inference
from fpmace.devices import check_device
from fpmace.errors import ConfigError
from fpmace.models.base import Model
from fpmace.models.heads import of_one_head
from fpmace.models.initial import rebuilt
from fpmace.models.io import load_model

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def parse_device(device: str | torch.device) -> torch.device:
    """Return the device, which must exist on this machine.

    Raises:
        ConfigError: for an unknown or absent device.
    """
    check_device(str(device))
    return torch.device(device)


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return float32 or float64; None stands for the precision of the model file.

    Raises:
        ConfigError: for another type.
    """
    if dtype is None or dtype in _DTYPES.values():
        return dtype  # type: ignore[return-value]
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"got {dtype!r}, allowed: float32, float64", where="dtype")
    return _DTYPES[name]


def open_model(
    source: object,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    pbc_handling: str | None = None,
    plugins: Sequence[str] = (),
    inference: Inference | None = None,
    head: str | None = None,
    all_heads: bool = False,
) -> Model:
    """Load a model for inference; its parameters take no gradients.

    Args:
        source: a model file, or a model (which is copied, not changed).
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: precision; that of the file or model if not given.
        pbc_handling: boundary condition of the electrostatics in place of the model's own.
        plugins: files or modules that register parts of the model.
        inference: how it is computed; :class:`Inference` with its defaults if not given.
        head: the one to take out of a model of several.
        all_heads: keep them all where none is named; the structures then say which is meant.

    Raises:
        ModelFileError: the file is missing, damaged, or not a model.
        ConfigError: device, dtype, pbc_handling, inference or head are unusable, or the head
            is missing.
    """
    place, precision = parse_device(device), parse_dtype(dtype)
    sources = [plugins] if isinstance(plugins, str) else plugins
    plugins = check(sources, tuple[str, ...], where="plugins")
    if isinstance(source, Model):
        model: Model = copy.deepcopy(source)
    elif not isinstance(source, (str, Path)):
        raise ConfigError(
            f"expects the name of a model file or a model, got {type(source).__name__}",
            where="model",
        )
    else:
        model = load_model(source, plugins=plugins)
    if head is not None or (len(model.heads) > 1 and not all_heads):
        model = of_one_head(model, head)
    if pbc_handling is not None:
        model = with_pbc_handling(model, pbc_handling)
    model = model.to(device=place, dtype=precision)
    model = model.eval().requires_grad_(False)
    (inference or Inference()).apply(model)
    return model


def with_pbc_handling(model: Model, pbc_handling: str) -> Model:
    """The model with another boundary condition of its electrostatics.

    Raises:
        ConfigError: for an unknown condition, or a model that has no such option.
    """
    if "pbc_handling" not in model.config:
        raise ConfigError(
            f"a {type(model).__name__} model has no electrostatics; leave pbc_handling out",
            where="pbc_handling",
        )
    try:
        return rebuilt(model, pbc_handling=pbc_handling)
    except ConfigError as error:
        raise ConfigError(error.message, where="pbc_handling") from error


def model_dtype(model: nn.Module) -> torch.dtype:
    """Precision of the weights."""
    return next(item.dtype for item in model.parameters() if item.is_floating_point())


def model_device(model: nn.Module) -> torch.device:
    """Device of the weights."""
    return next(model.parameters()).device
