"""Options of MACE models, read from the modules of a foreign one."""

from __future__ import annotations

from collections.abc import Sequence

from e3nn.o3 import Irreps

from fpmace.annotations import Options
from fpmace.conversion.module_tree import Module
from fpmace.conversion.radial_config import radial_options
from fpmace.conversion.readout_config import head_options, readout_options
from fpmace.registry import names


def backbone_config(root: Module) -> Options:
    """Options that all models share; see :class:`fpmace.models.mace.MACE`.

    Raises:
        ModelFileError: if something is missing or not understood.
    """
    interactions = root.child("interactions").items()
    products = root.child("products").items()
    if not interactions or len(interactions) != len(products):
        raise root.refuse(f"has {len(interactions)} interactions and {len(products)} products")
    heads = head_options(root)
    return {
        **heads,
        "r_max": root.value("r_max"),
        **radial_options(root),
        "max_ell": Irreps(root.child("spherical_harmonics").value("irreps_out")).lmax,
        "num_interactions": len(interactions),
        "hidden_irreps": products[0].child("linear").value("irreps_out"),
        "keep_last_layer_irreps": _keeps_irreps(root, products),
        **_interaction_options(root, interactions),
        **_product_options(root, products, interactions),
        **readout_options(root, len(interactions), len(heads["heads"])),
        **_embedding_options(root),
    }


def _interaction_options(root: Module, interactions: list[Module]) -> Options:
    blocks = [_interaction_class(item) for item in interactions]
    return {
        "interaction_cls_first": blocks[0],
        "interaction_cls": _one(root, "interaction blocks after the first", blocks[1:], blocks[0]),
        "avg_num_neighbors": _one(
            root,
            "values of avg_num_neighbors",
            [float(item.value("avg_num_neighbors", 1.0)) for item in interactions],
        ),
        "radial_MLP": _one(
            root, "sizes of the radial networks", [_radial_sizes(item) for item in interactions]
        ),
        **_widths(root, interactions),
    }


def _widths(root: Module, interactions: list[Module]) -> Options:
    """``edge_irreps``, as the first linear maps of the interactions say."""
    maps = [item.child("linear_up") for item in interactions]
    given = [Irreps(item.value("irreps_in")).simplify() for item in maps]
    summed = [Irreps(item.value("irreps_out")).simplify() for item in maps]
    first = summed[0] != given[0]
    if summed[1:] == given[1:] and not first:
        return {}
    later = _one(root, "edge_irreps", [str(irreps) for irreps in summed[1:]], str(summed[0]))
    if first and str(summed[0]) != str(Irreps(str(later))[:1]):
        raise maps[0].refuse(f"maps to {summed[0]}, not to the scalars of edge_irreps '{later}'")
    return {"edge_irreps": later, "use_edge_irreps_first": first}


def _product_options(root: Module, products: list[Module], interactions: list[Module]) -> Options:
    for interaction, product in zip(interactions, products, strict=True):
        block = interaction.class_name
        if "Residual" in block and not product.value("use_sc", True):
            raise product.refuse(f"leaves out the skip of its {block}; not supported")
    agnostic = [bool(item.value("use_agnostic_product", False)) for item in products]
    agnostic.append(bool(root.value("use_agnostic_product", agnostic[0])))
    return {
        "correlation": _same([_correlation(item) for item in products]),
        "use_agnostic_product": _one(root, "values of use_agnostic_product", agnostic),
    }


def _keeps_irreps(root: Module, products: list[Module]) -> bool:
    """Whether the last of several layers has more than scalars, where others have none."""
    if root.class_name not in ("MACE", "ScaleShiftMACE"):
        return False
    last = Irreps(products[-1].child("linear").value("irreps_out"))
    return len(products) > 1 and last.lmax > 0


def _embedding_options(root: Module) -> Options:
    embedding = root.find("joint_embedding")
    if embedding is None:
        return {}
    return {
        "embedding_specs": embedding.value("specs"),
        "use_embedding_readout": root.find("embedding_readout") is not None,
    }


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


def _same(values: Sequence[object]) -> object:
    return values[0] if all(value == values[0] for value in values) else values


def _one(root: Module, what: str, values: Sequence[object], default: object = None) -> object:
    """The common value; ``default`` where there are none."""
    if not values:
        return default
    if any(value != values[0] for value in values):
        raise root.refuse(f"has different {what} ({', '.join(map(str, values))}); not supported")
    return values[0]
