"""Options of a foreign FixedPointCore beyond the backbone: density, field and energy."""

from __future__ import annotations

from math import isqrt

from e3nn.o3 import Irreps

from fpmace.annotations import Options
from fpmace.conversion.module_tree import Module
from fpmace.electrostatics.gaussian import kspace_cutoff
from fpmace.registry import names

UNVERIFIED = ("TanhPotentialEmbedding", "SkipMLPNonLinearity", "UncoupledProductMixer")
"""Blocks of the same name for which no reference numbers exist; equal weights may not mean the
same, so they are refused."""

_MIXERS = {
    "AdditiveMixer": "AdditiveFieldMixer",
    "AdditiveFieldMixer": "AdditiveFieldMixer",
    "NoMixer": "NoMixer",
}


def fixed_point_config(root: Module) -> Options:
    """Options of :class:`fpmace.models.fixed_point_core.FixedPointCore` except the backbone's.

    Raises:
        ModelFileError: if something is missing or not understood.
    """
    n_elements = len(root.value("atomic_numbers"))
    return {
        **electrostatics_config(root),
        **_local_density(root, n_elements),
        "fermi_level_offset": float(root.value("fermi_level_offset", 0.0)),
        "fixedpoint_update_config": _update_rule(root.child("field_dependent_charges_map")),
        "field_readout_config": _field_readout(root.child("local_electron_energy")),
        "add_local_electron_energy": bool(root.value("add_local_electron_energy")),
        "return_electrostatic_potentials": bool(root.value("return_electrostatic_potentials")),
    }


def electrostatics_config(root: Module) -> Options:
    """Options of the electrostatics and its features, from the modules that compute them.

    Raises:
        ModelFileError: if energy and features do not go together.
    """
    energy = root.child("coulomb_energy")
    features = root.child("electric_potential_descriptor")
    density_max_l = int(energy.value("density_max_l"))
    smearing = float(energy.value("density_smearing_width"))
    basis = features.child("feature_basis")
    widths = [float(width) for width in basis.value("sigmas")]
    feature_max_l = int(basis.value("max_l"))
    method = features.value("pbc_handling", "auto")
    if energy.value("pbc_handling", "auto") != method:
        raise root.refuse(
            f"uses pbc_handling '{method}' for the features and "
            f"'{energy.value('pbc_handling')}' for the energy; not supported"
        )
    unit = kspace_cutoff(1.0, max(density_max_l, feature_max_l), (smearing, *widths))
    return {
        "kspace_window": 0.0,
        "kspace_cutoff_factor": _short_decimal(float(root.value("kspace_cutoff")) / unit),
        "atomic_multipoles_max_l": density_max_l,
        "atomic_multipoles_smearing_width": smearing,
        "field_feature_max_l": feature_max_l,
        "field_feature_widths": widths,
        "field_feature_norms": _norms(root, len(widths), feature_max_l),
        "field_si": bool(features.value("include_self_interaction")),
        "include_electrostatic_self_interaction": bool(energy.value("include_self_interaction")),
        "pbc_handling": method,
    }


def _short_decimal(value: float) -> float:
    """The number that a user is likely to have typed, if ``value`` is that but for rounding."""
    short = round(value, 4)
    return short if abs(short - value) < 1e-6 else value


def _norms(root: Module, n_widths: int, max_l: int) -> list[float]:
    """One norm per degree and width from the buffer, which repeats it for each component."""
    values = root.value("field_feature_norms")
    if len(values) != n_widths * (max_l + 1) ** 2:
        raise root.refuse(f"has {len(values)} field_feature_norms, not one per field feature")
    norms, start = [], 0
    for degree in range(max_l + 1):
        for _ in range(n_widths):
            block = values[start : start + 2 * degree + 1]
            if len(set(block)) != 1:
                raise root.refuse("field_feature_norms differ between components; not supported")
            norms.append(float(block[0]))
            start += len(block)
    return norms


def _local_density(root: Module, n_elements: int) -> Options:
    maps = root.child("lr_source_maps").items()
    if any(item.value("zero_charges", False) for item in maps):
        raise root.refuse("has local densities without charges (zero_charges); not supported")
    first = maps[0] if maps else root.child("lr_source_maps")
    if set(first.children()) >= {"linear_1", "linear_mid", "linear_2"}:
        return {"use_linear_local_charges": False}
    if set(first.children()) != {"linear"}:
        raise first.refuse(f"a local density readout {first.class_name} is not supported")
    scale = first.value("atom_density_scale", [1.0] * n_elements)
    return {"use_linear_local_charges": True, "atom_density_scaling": [float(s) for s in scale]}


def _update_rule(rule: Module) -> Options:
    config: Options = {
        "type": _known(rule, "update_rule"),
        "potential_embedding_cls": _known(
            rule.child("potential_embedding"), "potential_embedding"
        ),
    }
    if config["type"] == "OneBodyVariableUpdate":
        return {**config, "nonlinearity_cls": _nonlinearity(rule.child("nonlinearity"))}
    return {**config, **_many_body(rule)}


def _field_readout(readout: Module) -> Options:
    name = _known(readout, "field_readout")
    if name == "StrictQuadraticFieldEnergyReadout":
        channels = {mul for mul, _ in Irreps(readout.child("linear_qa").value("irreps_out"))}
        if len(channels) != 1:
            raise readout.refuse(f"has different numbers of channels {sorted(channels)}")
        return {"type": name, "n_channels": channels.pop()}
    if name == "OneBodyMLPFieldReadout":
        return {"type": name, "hidden_sizes": list(readout.child("mlp").value("hs"))[1:-1]}
    if name == "NullFieldReadout":
        return {"type": name}
    return {"type": name, **_many_body(readout)}


def _many_body(block: Module) -> Options:
    """Options of the chain that ManyBodyUpdate and two field readouts share."""
    interaction, product = block.child("interaction"), block.child("product")
    contractions = product.child("symmetric_contractions")
    harmonics = Irreps(contractions.value("irreps_in"))
    n_components = sum(2 * ir.l + 1 for _, ir in harmonics)
    return {
        "interaction_cls": _known(interaction, "interaction"),
        "field_mixer_cls": _mixer(block.find("central_atom_mixer")),
        "nonlinearity_cls": _nonlinearity(block.find("activation")),
        "correlation": int(contractions.child("contractions.0").value("correlation")),
        "max_ell": isqrt(n_components) - 1,
        "use_sc": bool(product.value("use_sc")),
        "radial_sizes": list(interaction.child("conv_tp_weights").value("hs"))[1:-1],
    }


def _mixer(module: Module | None) -> str:
    if module is None:
        return "NoMixer"
    if module.class_name not in _MIXERS:
        raise module.refuse(f"the mixer {module.class_name} is not supported")
    return _MIXERS[module.class_name]


def _nonlinearity(module: Module | None) -> Options:
    if module is None or module.class_name == "Identity":
        return {"type": "NoNonLinearity"}
    name = _known(module, "nonlinearity")
    if name == "NoNonLinearity":
        return {"type": name}
    return {"type": name, "hidden_sizes": list(module.child("mlp").value("hs"))[1:-1]}


def _known(module: Module, kind: str) -> str:
    name = module.class_name
    if name in UNVERIFIED:
        raise module.refuse(
            f"the block {name} cannot be converted: the one of fpmace is another function"
        )
    if name not in names(kind):
        raise module.refuse(f"the block {name} is not known (known: {', '.join(names(kind))})")
    return name
