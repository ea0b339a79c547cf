"""Options that blocks share, and places in the configuration for blocks that hold others."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from e3nn.o3 import Irreps

from fpmace.annotations import Bounds, Count, Doc
from fpmace.errors import ConfigError
from fpmace.registry import Part, PartConfig, build

logger = logging.getLogger(__name__)

EmbeddingPart = Annotated[
    PartConfig,
    Part("potential_embedding"),
    Doc("map from field features to hidden features"),
]
NonlinearityPart = Annotated[
    PartConfig,
    Part("nonlinearity"),
    Doc("acts on the invariants of the result and the atom's features"),
]
LayerWidths = Annotated[
    tuple[Count, ...], Bounds(filled=True), Doc("widths of the hidden layers, at least one")
]


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
