"""Models as calculators and evaluation use them: loaded, frozen, on a device, the right kind."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fpmace.devices import check_device
from fpmace.electrostatics.gto import GTOElectrostatics
from fpmace.errors import ConfigError, ModelFileError
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.models.io import load_model

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def parse_device(device: str | torch.device) -> torch.device:
    """Return the device, which must exist on this machine.

    Raises:
        ConfigError: for an unknown or absent device.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"'{device}' is not a device; use cpu, cuda or cuda:N", where="device"
        ) from error
    check_device(str(found))
    return found


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
    source: str | Path | nn.Module,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    pbc_handling: str | None = None,
    plugins: Sequence[str] = (),
) -> nn.Module:
    """Load a model for inference; its parameters take no gradients.

    Args:
        source: a model file, or a model (which is copied, not changed).
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: precision; that of the file or model if not given.
        pbc_handling: boundary condition of the electrostatics in place of the model's own.
        plugins: files or modules that register parts of the model.

    Raises:
        ModelFileError: the file is missing, damaged, or not a model.
        ConfigError: device, dtype or pbc_handling are unusable.
    """
    place, precision = parse_device(device), parse_dtype(dtype)
    if isinstance(source, nn.Module):
        model = copy.deepcopy(source).to(device=place, dtype=precision)
    else:
        model = load_model(source, place, precision, plugins=plugins)
    if pbc_handling is not None:
        set_pbc_handling(model, pbc_handling)
    return model.eval().requires_grad_(False)


def set_pbc_handling(model: nn.Module, pbc_handling: str) -> None:
    """Give a fixed-point model another boundary condition, in place.

    Raises:
        ConfigError: for an unknown mode, or a model without electrostatics.
    """
    if not isinstance(model, FixedPointCore):
        raise ConfigError(
            f"a {type(model).__name__} model has no electrostatics; leave pbc_handling out",
            where="pbc_handling",
        )
    try:
        options = dataclasses.replace(model.electrostatics.options, pbc_method=pbc_handling)
    except ConfigError as error:
        reason = str(error).removeprefix("electrostatics.pbc_method: ")
        raise ConfigError(reason, where="pbc_handling") from error
    norms = model.field_feature_norms
    model.electrostatics = GTOElectrostatics(options).to(norms.device, norms.dtype)
    model.config["pbc_handling"] = pbc_handling


def require_fixed_point(model: nn.Module, source: object) -> FixedPointCore:
    """Refuse a model without a self-consistent density.

    Raises:
        ModelFileError: naming the calculator that fits.
    """
    if not isinstance(model, FixedPointCore):
        raise ModelFileError(
            f"{_name(source)}: is a {type(model).__name__} model without a self-consistent "
            "density; use MACECalculator"
        )
    return model


def require_local(model: nn.Module, source: object) -> nn.Module:
    """Refuse a model with a self-consistent density.

    Raises:
        ModelFileError: naming the calculator that fits.
    """
    if isinstance(model, FixedPointCore):
        raise ModelFileError(
            f"{_name(source)}: is a fixed-point model; use FixedPointSCFCalculator"
        )
    return model


def model_dtype(model: nn.Module) -> torch.dtype:
    """Precision of the weights."""
    return next(item.dtype for item in model.parameters() if item.is_floating_point())


def model_device(model: nn.Module) -> torch.device:
    """Device of the weights."""
    return next(model.parameters()).device


def _name(source: object) -> str:
    return "model" if isinstance(source, nn.Module) else str(source)
