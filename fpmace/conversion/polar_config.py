"""Options of a foreign PolarMACE beyond the backbone, and what of it has no effect."""

from __future__ import annotations

from collections.abc import Mapping

from e3nn.o3 import Irreps
from torch import Tensor

from fpmace.annotations import Options
from fpmace.conversion.fixed_point_config import electrostatics_config
from fpmace.conversion.module_tree import Module
from fpmace.conversion.readout_config import gate_of
from fpmace.conversion.unsupported import POLAR_BLOCKS
from fpmace.conversion.weights import WeightFate

UPDATE, EMBEDDING = POLAR_BLOCKS
READOUT = "OneBodyMLPFieldReadout"


def polar_config(root: Module, backbone: Options) -> Options:
    """Options of :class:`fpmace.models.polar.PolarMACE` except the backbone's and the scale.

    Args:
        backbone: options of the backbone; some of them are set anew.

    Raises:
        ModelFileError: if something is missing or not understood.
    """
    maps = root.child("field_dependent_charges_maps").items()
    energy = root.child("local_electron_energy")
    for item in maps:
        _demand(item, UPDATE)
        _demand(item.child("potential_embedding"), EMBEDDING)
    _demand(energy, READOUT)
    products = [item.child(name) for item in maps for name in ("dot_products", "tp_out")]
    for product in (*products, energy.child("dot_products_q"), energy.child("dot_products_v")):
        if product.value("layout", "mul_ir") != "mul_ir":
            # mace-torch 0.3.16 itself has other energies in this layout, with the same weights
            raise product.refuse(
                f"has the layout {product.value('layout')}; not supported: convert the model with "
                "mace-torch's mace_cueq_to_e3nn first"
            )
    for source in root.child("lr_source_maps").items():
        if source.value("zero_charges", False):
            raise source.refuse("has local densities without charges (zero_charges)")
    fukui = root.child("fukui_source_map")
    hidden, gate = str(fukui.value("hidden_irreps")), gate_of(fukui)
    theirs = (backbone.get("MLP_irreps", hidden), backbone.get("gate", gate))
    if (Irreps(theirs[0]), theirs[1]) != (Irreps(hidden), gate):
        raise fukui.refuse(
            f"has hidden features {hidden} with {gate}, the last readout {theirs[0]} with "
            f"{theirs[1]}; not supported"
        )
    if not root.child("coulomb_energy").value("include_pbc_corrections", True):
        raise root.refuse("leaves out the corrections of slabs and molecules; not supported")
    return {
        **electrostatics_config(root),
        "recursion": "steps",
        "num_recursion_steps": len(maps),
        "fukui_weights": "signed",
        "shared_readout": bool(backbone["use_last_readout_only"]),
        "use_last_readout_only": False,
        "MLP_irreps": hidden,
        "gate": gate,
        "pair_repulsion": None,
        "embedding_specs": None,
        "use_embedding_readout": False,
        "add_local_electron_energy": bool(root.value("add_local_electron_energy")),
    }


def polar_unused(root: Module, state: Mapping[str, Tensor]) -> list[WeightFate]:
    """Entries of the state that do not act on the energy, and why."""
    unused = {
        "pair_repulsion_fn.": "computed and never added in the original",
        "joint_embedding.": "never called in the original",
        "embedding_readout.": "never called in the original",
    }
    if not root.value("add_local_electron_energy"):
        unused["local_electron_energy."] = "add_local_electron_energy is off"
    return [
        WeightFate(name, "constant", shape=tuple(value.shape), note=reason)
        for name, value in state.items()
        for start, reason in unused.items()
        if name.startswith(start)
    ]


def polar_notes(root: Module) -> list[str]:
    """Where the converted model deliberately differs from what mace-torch computes."""
    notes = [
        "cells: as given, where the original replaces the vectors of directions that are not "
        "periodic by a length that depends on where the atoms lie; left-handed cells are like "
        "right-handed ones; a molecule among crystals is summed as alone",
        "stress: of the whole energy, where the original leaves out the strain of the long-ranged "
        "part",
    ]
    if max(root.value("atomic_multipoles_max_l"), root.value("field_feature_max_l")) > 0:
        notes.append(
            "open boundaries: closed forms for the dipoles of molecules, where the original takes "
            "finite differences that change under rotation"
        )
    if root.find("pair_repulsion_fn") is not None:
        notes.append(
            "pair_repulsion: the file has one, which the original computes and never adds; it is "
            "left out"
        )
    if root.attributes.get("embedding_specs"):
        notes.append("embedding_specs: without effect in the original; left out")
    return notes


def _demand(module: Module, name: str) -> None:
    if module.class_name != name:
        raise module.refuse(f"the block {module.class_name} is not known here (known: {name})")
