"""Options of MACE models, read from the modules of a foreign one."""

from __future__ import annotations

from collections.abc import Sequence

from e3nn.o3 import Irreps

from fpmace.annotations import Options
from fpmace.blocks.linear import SILU_NORM
from fpmace.blocks.readout import TANH_NORM
from fpmace.conversion.module_tree import Module
from fpmace.conversion.safe_archive import class_name
from fpmace.conversion.unsupported import SILU_NAMES
from fpmace.registry import names

_RADIAL = {"BesselBasis": "bessel", "GaussianBasis": "gaussian"}


def backbone_config(root: Module) -> Options:
    """Options that all models share; see :class:`fpmace.models.mace.MACE`.

    Raises:
        ModelFileError: if something is missing or not understood.
    """
    interactions = root.child("interactions").items()
    products = root.child("products").items()
    if not interactions or len(interactions) != len(products):
        raise root.refuse(f"has {len(interactions)} interactions and {len(products)} products")
    numbers = root.value("atomic_numbers")
    blocks = [_interaction_class(item) for item in interactions]
    for block, product in zip(blocks, products, strict=True):
        if "Residual" in block and not product.value("use_sc", True):
            raise product.refuse(f"leaves out the skip of its {block}; not supported")
    return {
        "r_max": root.value("r_max"),
        **_radial_options(root.child("radial_embedding")),
        "max_ell": Irreps(root.child("spherical_harmonics").value("irreps_out")).lmax,
        "num_interactions": len(interactions),
        "hidden_irreps": products[0].child("linear").value("irreps_out"),
        "atomic_numbers": numbers,
        "atomic_energies": _atomic_energies(root, len(numbers)),
        "correlation": _same([_correlation(item) for item in products]),
        "interaction_cls_first": blocks[0],
        "interaction_cls": _one(root, "interaction blocks after the first", blocks[1:], blocks[0]),
        "avg_num_neighbors": _one(
            root,
            "values of avg_num_neighbors",
            [float(item.value("avg_num_neighbors")) for item in interactions],
        ),
        "radial_MLP": _one(
            root, "sizes of the radial networks", [_radial_sizes(item) for item in interactions]
        ),
        **_readout_options(root),
    }


def _radial_options(radial: Module) -> Options:
    basis, cutoff = radial.child("bessel_fn"), radial.child("cutoff_fn")
    if basis.class_name not in _RADIAL:
        raise basis.refuse(f"the radial basis {basis.class_name} is not known")
    if not radial.value("apply_cutoff", True):
        raise radial.refuse("the cutoff is not part of the radial basis; not supported")
    return {
        "radial_type": _RADIAL[basis.class_name],
        "num_bessel": len(next(v for v in basis.tensors().values() if v.dim() == 1)),
        "num_polynomial_cutoff": int(cutoff.value("p")),
    }


def _atomic_energies(root: Module, n_elements: int) -> list[float]:
    block = root.child("atomic_energies_fn")
    energies = block.value("atomic_energies")
    if energies and isinstance(energies[0], list):
        if len(energies) > 1:
            raise block.refuse(f"has energies for {len(energies)} heads; only one is supported")
        energies = energies[0]
    if len(energies) != n_elements:
        raise block.refuse(f"has {len(energies)} energies for {n_elements} elements")
    return [float(value) for value in energies]


def _interaction_class(module: Module) -> str:
    if module.class_name not in names("interaction"):
        raise module.refuse(
            f"the interaction block {module.class_name} is not known "
            f"(known: {', '.join(names('interaction'))})"
        )
    return module.class_name


def _correlation(product: Module) -> int:
    contractions = product.child("symmetric_contractions.contractions").items()
    orders = {int(item.value("correlation")) for item in contractions}
    if len(orders) != 1:
        raise product.refuse(f"has different correlations {sorted(orders)} in one layer")
    return orders.pop()


def _radial_sizes(interaction: Module) -> list[int]:
    return list(interaction.child("conv_tp_weights").value("hs"))[1:-1]


def _readout_options(root: Module) -> Options:
    readouts = root.child("readouts").items()
    for readout in readouts:
        out = readout.find("linear_2") or readout.child("linear")
        if out.value("irreps_out") != "1x0e":
            raise readout.refuse(f"gives {out.value('irreps_out')}, not one energy; not supported")
    last = readouts[-1] if readouts else root
    if last.find("linear_1") is None:
        return {}
    return {"MLP_irreps": last.child("linear_1").value("irreps_out"), "gate": _gate(last)}


def _gate(readout: Module) -> str:
    activations = readout.child("non_linearity.acts").items()
    if not activations:
        return "None"
    function = class_name(activations[0].attributes.get("f"))
    norm = activations[0].value("cst")
    if function in SILU_NAMES and abs(norm - SILU_NORM) < 1e-6:
        return "silu"
    if function == "tanh" and abs(norm - TANH_NORM) < 1e-6:
        return "tanh"
    raise activations[0].refuse(f"the activation '{function}' is not supported (silu, tanh, None)")


def _same(values: Sequence[object]) -> object:
    return values[0] if all(value == values[0] for value in values) else values


def _one(root: Module, what: str, values: Sequence[object], default: object = None) -> object:
    """The common value; ``default`` where there are none."""
    if not values:
        return default
    if any(value != values[0] for value in values):
        raise root.refuse(f"has different {what} ({', '.join(map(str, values))}); not supported")
    return values[0]
