"""ASE calculator of the models that solve no self-consistency."""

from __future__ import annotations

from fpmace.calculators.base import ModelCalculator
from fpmace.errors import ModelFileError
from fpmace.models.base import Model


class MACECalculator(ModelCalculator):
    """:class:`ModelCalculator` for models without a self-consistency: MACE, ScaleShiftMACE.

    Raises:
        ModelFileError: the model has one.
    """

    def check_model(self, model: Model, source: object) -> None:
        """Refuse a model that needs a self-consistency loop.

        Raises:
            ModelFileError: naming the calculator that fits.
        """
        if model.solves_self_consistency:
            raise ModelFileError(f"{source}: is a fixed-point model; use FixedPointSCFCalculator")
