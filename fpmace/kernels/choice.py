"""Which kernels a model computes with: the option ``kernels``."""

from __future__ import annotations

import logging
from functools import cache
from typing import Annotated, Literal, get_args

from torch import nn

import fpmace.kernels.contraction
import fpmace.kernels.convolution
import fpmace.kernels.table  # noqa: F401  all enter their kernels
from fpmace.annotations import Doc
from fpmace.blocks.convolution import EdgeConvolution
from fpmace.blocks.radial_table import RadialTables
from fpmace.blocks.symmetric_contraction import SymmetricContraction
from fpmace.errors import ConfigError
from fpmace.kernels.compiler import compile_function, find_compiler, missing_compiler
from fpmace.kernels.source import function

logger = logging.getLogger(__name__)

KernelName = Literal["auto", "torch", "c"]
Kernels = Annotated[
    KernelName,
    Doc(
        "what computes convolution and contraction: c (compiled for the processor when first "
        "needed, kept on disk), torch, or auto: c on a CPU with a C compiler"
    ),
]


def use_kernels(model: nn.Module, kernels: str) -> None:
    """Choose the kernels of a model that is on its device.

    Raises:
        ConfigError: an unknown name, or ``c`` without a compiler or a CPU.
    """
    if kernels not in get_args(KernelName):
        raise ConfigError(
            f"got {kernels!r}, allowed: {', '.join(get_args(KernelName))}", where="kernels"
        )
    name = "torch"
    if kernels != "torch":
        device = next((x.device.type for x in model.parameters()), "cpu")
        reason = f"c runs on a CPU, not on {device}" if device != "cpu" else _unusable()
        if reason is None:
            name = "c"
        elif kernels == "c":
            raise ConfigError(f"{reason}; or use kernels: torch", where="kernels")
        elif device == "cpu":
            _say(reason)
    for module in model.modules():
        if isinstance(module, EdgeConvolution | SymmetricContraction | RadialTables):
            module.kernel = name


@cache
def _unusable() -> str | None:
    """Why nothing can be compiled here, if so."""
    if find_compiler() is None:
        return missing_compiler()
    try:
        compile_function(function([], []))
    except (ConfigError, OSError) as error:
        return str(error)
    return None


@cache
def _say(reason: str) -> None:
    logger.warning("kernels: plain torch instead of c: %s", reason)
