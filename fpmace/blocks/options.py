"""Checks of options, and places in the configuration, for blocks that hold other blocks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from e3nn.o3 import Irreps

from fpmace.errors import ConfigError
from fpmace.registry import PartConfig, build

logger = logging.getLogger(__name__)


def build_block(kind: str, config: PartConfig, *, where: str, **context: Any) -> Any:
    """Build a part that an option of this one names.

    Like :func:`fpmace.registry.build`, but complaints of the part's own constructor name the
    place as well: ``nonlinearity_cls.hidden_sizes: ...``.

    Raises:
        ConfigError: led by ``where``.
    """
    try:
        return build(kind, config, where=where, **context)
    except ConfigError as error:
        if error.where.startswith(where):
            raise
        place = f"{where}.{error.where}" if error.where else where
        raise ConfigError(error.message, where=place) from error


def at_least(name: str, value: int, minimum: int) -> int:
    """Return the value of a whole-number option.

    Raises:
        ConfigError: if it is below ``minimum``.
    """
    if value < minimum:
        raise ConfigError(f"expected at least {minimum}, got {value}", where=name)
    return value


def above_zero(name: str, value: float) -> float:
    """Return the value of an option that is a positive, finite number.

    Raises:
        ConfigError: if it is not.
    """
    if not 0.0 < value < float("inf"):
        raise ConfigError(f"expected a number above 0, got {value}", where=name)
    return float(value)


def layer_widths(name: str, widths: Sequence[int], *, hint: str = "") -> list[int]:
    """Return the widths of the hidden layers of a perceptron.

    Raises:
        ConfigError: if there are none, or one is below 1.
    """
    if not widths or min(widths) < 1:
        raise ConfigError(
            f"expected one or more layer widths of at least 1, got {list(widths)}{hint}",
            where=name,
        )
    return [int(width) for width in widths]


def check_degrees(irreps: Irreps, node_irreps: Irreps, *, what: str, option: str) -> None:
    """Refuse degrees that a linear map from or to the node features has to leave out.

    Vectors without vector features are let through with a warning: earlier codes made such
    models.

    Args:
        irreps: of the density or of the field features.
        node_irreps: what the features of an atom are.
        what: the quantity that would be lost, in words.
        option: the option that sets its highest degree.

    Raises:
        ConfigError: for a degree of 2 or more that ``node_irreps`` lacks.
    """
    available = {ir for _, ir in Irreps(node_irreps)}
    for _, ir in Irreps(irreps):
        if ir in available:
            continue
        text = (
            f"{what} of degree {ir.l} have no effect: hidden_irreps '{node_irreps}' have no {ir} "
            f"features; add them or lower {option}"
        )
        if ir.l > 1:
            raise ConfigError(text)
        logger.warning("%s", text)
