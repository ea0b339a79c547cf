"""EnergyFunctionalSCF: the fixed-point model whose density minimises an energy, by name."""

from __future__ import annotations

from fpmace.annotations import Options
from fpmace.errors import ConfigError
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.registry import get, normalise, register_model

_PARTS = {
    "fixedpoint_update_config": ("update_rule", "OneBodyPassiveUpdate", "is_passive"),
    "field_readout_config": ("field_readout", "VariationalFieldReadout", "is_variational"),
}


@register_model("EnergyFunctionalSCF")
class EnergyFunctionalSCF(FixedPointCore):
    """FixedPoint with ``OneBodyPassiveUpdate`` and ``VariationalFieldReadout``, as a preset.

    The same model as ``FixedPoint`` with these two parts, option for option.
    """

    @staticmethod
    def complete_options(given: Options) -> Options:
        """Choose the two parts, then what follows from them."""
        chosen = dict(given)
        for option, (kind, name, promise) in _PARTS.items():
            part = chosen.setdefault(option, normalise(kind, name))
            if not getattr(get(kind, part["type"]).target, promise, False):
                raise ConfigError(
                    f"an EnergyFunctionalSCF needs one such as {name}, got {part['type']}; leave "
                    "it out, or use model FixedPoint",
                    where=option,
                )
        if not chosen.setdefault("add_local_electron_energy", True):
            raise ConfigError(
                "false leaves out the energy that an EnergyFunctionalSCF minimises; use true",
                where="add_local_electron_energy",
            )
        return FixedPointCore.complete_options(chosen)
