"""Flat options of the model: one table of other names for what ``model: {...}`` holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, cast

from fpmace.annotations import Bounds, Count, Doc, Options, fits
from fpmace.config.option import RunOption
from fpmace.electrostatics.options import ElectrostaticsOptions
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.part_entry import Option, make_entry

_GROUPS: dict[str, dict[str, str]] = {
    "Model": {
        "r_max": "r_max",
        "hidden_irreps": "hidden_irreps",
        "num_channels": "",
        "max_L": "",
        "max_ell": "max_ell",
        "correlation": "correlation",
        "num_interactions": "num_interactions",
        "interaction": "interaction_cls",
        "interaction_first": "interaction_cls_first",
        "MLP_irreps": "MLP_irreps",
        "radial_type": "radial_type",
        "num_radial_basis": "num_bessel",
        "num_cutoff_basis": "num_polynomial_cutoff",
        "radial_MLP": "radial_MLP",
        "gate": "gate",
        "avg_num_neighbors": "avg_num_neighbors",
    },
    "Density and electrostatics": {
        "atomic_multipoles_max_l": "atomic_multipoles_max_l",
        "atomic_multipoles_smearing_width": "atomic_multipoles_smearing_width",
        "kspace_cutoff_factor": "kspace_cutoff_factor",
        "kspace_window": "kspace_window",
        "electrostatic_pbc_method": "pbc_handling",
        "electrostatics": "electrostatics",
        "include_electrostatic_self_interaction": "include_electrostatic_self_interaction",
        "quadrupole_feature_corrections": "quadrupole_feature_corrections",
        "return_electrostatic_potentials": "return_electrostatic_potentials",
        "fermi_level_offset": "fermi_level_offset",
        "use_linear_local_charges": "use_linear_local_charges",
        "atom_density_scaling": "atom_density_scaling",
        "local_density_config": "local_density_config",
    },
    "Field features, fixed-point update and energy": {
        "field_feature_max_l": "field_feature_max_l",
        "field_feature_widths": "field_feature_widths",
        "field_feature_norms": "field_feature_norms",
        "include_field_si": "field_si",
        "fixedpoint_update_config": "fixedpoint_update_config",
        "field_readout_config": "field_readout_config",
        "include_local_electron_energy": "add_local_electron_energy",
        "anchor_isolated_atoms": "anchor_isolated_atoms",
    },
}
"""Flat name -> option of the model, by the heading of the flags."""

ALIASES = {flat: option for group in _GROUPS.values() for flat, option in group.items() if option}

SHORTHANDS: Options = {
    "num_channels": Annotated[
        Count | None,
        Doc("number of features of each order, instead of hidden_irreps"),
    ],
    "max_L": Annotated[
        Annotated[int, Bounds(minimum=0)] | None,
        Doc("highest order of the features, instead of hidden_irreps"),
    ],
}
"""Names, flat or in ``model``, that make up ``hidden_irreps``."""

FLAT = {**ALIASES, **dict.fromkeys(SHORTHANDS, "hidden_irreps")}

_DECLARED = make_entry("model", "FixedPoint", FixedPointCore, context_names=set(), plugin=None)


def training_default(option: Option) -> object:
    """The default of a model's option in a training; None where its data gives the value."""
    mark = option.from_data
    return mark.word if mark is not None and mark.by_default else option.default


def flat_options() -> dict[str, RunOption]:
    """The flat options as the default model declares them."""
    found: dict[str, RunOption] = {}
    for group, names in _GROUPS.items():
        for flat, name in names.items():
            declared = _DECLARED.option(name)
            if declared is None:
                found[flat] = RunOption(flat, SHORTHANDS[flat], None, group, "hidden_irreps")
            else:
                annotation, default = declared.annotation, training_default(declared)
                if not fits(default, annotation):
                    annotation = cast(Any, annotation) | None
                found[flat] = RunOption(flat, annotation, default, group, name)
    return found


def flattened(values: Mapping[str, object]) -> Options:
    """Options of ``model: {...}`` under their flat names, for readers of those.

    Flat keys that are given too win; options without a flat name are left out.
    """
    model = values.get("model")
    inside = model if isinstance(model, Mapping) else {}
    found = {flat: inside[name] for flat, name in ALIASES.items() if name in inside}
    return {**found, **{name: value for name, value in values.items() if name != "model"}}


def electrostatics_options(value: Callable[[str], Any]) -> ElectrostaticsOptions:
    """The electrostatics of field features, from what looks an option up by its flat name."""
    return ElectrostaticsOptions(
        density_max_l=value("atomic_multipoles_max_l"),
        smearing_width=value("atomic_multipoles_smearing_width"),
        feature_max_l=value("field_feature_max_l"),
        feature_widths=tuple(value("field_feature_widths")),
        kspace_cutoff_factor=value("kspace_cutoff_factor"),
        pbc_handling=value("electrostatic_pbc_method"),
        include_field_self_interaction=value("include_field_si"),
        quadrupole_feature_corrections=value("quadrupole_feature_corrections"),
        kspace_window=value("kspace_window"),
    )
