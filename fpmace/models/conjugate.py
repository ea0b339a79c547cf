"""Field features that are the potentials conjugate to the multipoles: which options they need."""

from __future__ import annotations

import logging
from math import pi, sqrt
from typing import Any

from fpmace.annotations import Options
from fpmace.blocks.field_readout import FieldReadout
from fpmace.blocks.update_rule import UpdateRule
from fpmace.errors import ConfigError
from fpmace.registry import get, names
from fpmace.units import COULOMB_C

logger = logging.getLogger(__name__)

PARTS = {"fixedpoint_update_config": "update_rule", "field_readout_config": "field_readout"}


def complete_conjugate(given: Options) -> Options:
    """Fill in the options of the features where a part needs conjugate potentials.

    They are then those of one width, that of the density, with the density's degrees and the
    own-site term, divided by what makes them dE_es/d(multipole).

    Args:
        given: options of a fixed-point model that were given.

    Returns:
        The options with those that follow; isolated atoms are anchored where the energy is
        variational, unless the options say otherwise.

    Raises:
        ConfigError: for an option that was given another value.
    """
    chosen = [_part(kind, given.get(option)) for option, kind in PARTS.items()]
    needing = [
        part.__name__ for part in chosen if getattr(part, "needs_conjugate_features", False)
    ]
    if given.get("field_feature_norms") == "conjugate":
        needing.append("field_feature_norms: conjugate")
    result = dict(given)
    if all(part is not None for part in chosen) and chosen[1].is_variational:
        result.setdefault("anchor_isolated_atoms", chosen[0].is_passive)
    if not needing:
        return result
    needed = _needed(given)
    for name, value in needed.items():
        if name in given and _plain(given[name]) != _plain(value):
            raise ConfigError(
                f"{needing[0]} needs the potentials conjugate to the multipoles, and so "
                f"{_text(value)}, got {_text(given[name])}; leave it out{_reason(name, given)}",
                where=name,
            )
    return {**result, **needed}


def _needed(given: Options) -> Options:
    return {
        "field_feature_widths": (float(given.get("atomic_multipoles_smearing_width", 1.5)),),
        "field_feature_max_l": given.get("atomic_multipoles_max_l", 1),
        "field_feature_norms": "conjugate",
        "field_si": True,
        "include_electrostatic_self_interaction": True,
        "quadrupole_feature_corrections": False,
    }


def _reason(name: str, given: Options) -> str:
    if name != "include_electrostatic_self_interaction":
        return ""
    sigma = float(given.get("atomic_multipoles_smearing_width", 1.5))
    lowest = -COULOMB_C / (sqrt(pi) * sigma)
    return (
        f" (without self-interaction the energy of the multipoles is not positive, with "
        f"eigenvalues down to {lowest:.1f} eV/e^2, and the density would not be unique)"
    )


def _part(kind: str, config: Any) -> Any:
    name = config if isinstance(config, str) or config is None else config["type"]
    return get(kind, name).target if name in names(kind) else None


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _text(value: object) -> str:
    return str(_plain(value)).lower() if isinstance(value, bool) else str(_plain(value))


def tell_what_is_lost(rule: UpdateRule, readout: FieldReadout, readout_is_used: bool) -> None:
    """Say in the log what does not hold where one of two parts is used without the other."""
    variational = readout_is_used and readout.is_variational
    if rule.is_passive and not variational:
        logger.warning(
            "%s without VariationalFieldReadout: the density is unique and passive, but the "
            "energy is not stationary in it: forces need an adjoint solve, the dipole is not the "
            "derivative of the energy by the field, nor the Fermi level that by the charge",
            type(rule).__name__,
        )
    if variational and not rule.is_passive:
        logger.warning(
            "%s without a passive update rule: the energy is not stationary in the density, and "
            "nothing keeps responses positive; OneBodyPassiveUpdate belongs to it",
            type(readout).__name__,
        )
