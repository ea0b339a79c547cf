"""How a model is computed when nothing is trained."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated

from fpmace.annotations import Bounds, Doc, check_fields
from fpmace.errors import ConfigError
from fpmace.kernels.choice import Kernels, use_kernels
from fpmace.models.backbone import Backbone
from fpmace.models.base import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Inference:
    """Settings; results differ by rounding, and by the error of tables where these are used."""

    kernels: Kernels = "auto"
    radial_tables: Annotated[
        bool,
        Doc(
            "splines of the distance in place of the radial networks, made when the model is "
            "loaded; their largest error is reported"
        ),
    ] = False
    edges_at_once: Annotated[
        int,
        Bounds(minimum=1),
        Doc(
            "of structures with more edges the backbone works on blocks of about as many, which "
            "saves memory and takes up to 1.5 times as long"
        ),
    ] = 65536

    def __post_init__(self) -> None:
        check_fields(self)

    def apply(self, model: Model) -> None:
        """Set a model up that is on its device.

        Raises:
            ConfigError: an option does not suit the model.
        """
        backbone = getattr(model, "backbone", None)
        if isinstance(backbone, Backbone):
            backbone.edges_at_once = self.edges_at_once
        if self.radial_tables:
            if not isinstance(backbone, Backbone):
                raise ConfigError(
                    f"a {type(model).__name__} model has no radial networks of a backbone; "
                    "leave it out",
                    where="radial_tables",
                )
            logger.info("%s", backbone.tabulate())
        use_kernels(model, self.kernels)
