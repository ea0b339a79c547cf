"""Low-rank adapters of a foreign model, merged into the weights that they adapt.

An adapted map is ``W + s A B`` (torch's linear maps: ``W + s B A``) with ``s = alpha/rank``; see
E. J. Hu et al., "LoRA", ICLR 2022.
"""

from __future__ import annotations

import torch
from e3nn.o3 import Irreps, Linear
from e3nn.o3._linear import Instruction
from torch import Tensor

from fpmace.blocks.linear import linear_function
from fpmace.conversion.module_tree import Module

ADAPTERS = ("LoRAO3Linear", "LoRADenseLinear", "LoRAFCLayer")


def merge_adapters(root: Module) -> int:
    """Replace every adapted module of a tree by its base with merged weights, in place.

    Returns:
        How many there were.

    Raises:
        ModelFileError: if an adapter is not built as expected.
    """
    count = 0
    for module in list(root.walk()):
        for name, child in module.children().items():
            if child.class_name in ADAPTERS:
                base = child.child("base")
                base.attributes["_parameters"]["weight"] = _merged(child, base)
                module.attributes["_modules"][name] = base.foreign
                count += 1
    return count


def _merged(adapter: Module, base: Module) -> Tensor:
    weight, scaling = _weight(base), float(adapter.value("scaling"))
    if adapter.class_name == "LoRAFCLayer":
        own = adapter.tensors()
        if not {"lora_A", "lora_B"} <= set(own):
            raise adapter.refuse("has no adapters of its own; not supported")
        return weight + scaling * (own["lora_A"] @ own["lora_B"])
    a, b = (_weight(adapter.child(name)) for name in ("lora_A", "lora_B"))
    if adapter.class_name == "LoRADenseLinear":
        return weight + scaling * (b @ a)
    irreps = [Irreps(adapter.value(f"{name}irreps{end}")) for name, end in _IRREPS]
    return weight + scaling * _product(weight, a, b, *irreps)


_IRREPS = (("", "_in"), ("lora_", ""), ("", "_out"))


def _weight(module: Module) -> Tensor:
    weight = module.tensors().get("weight")
    if weight is None:
        raise module.refuse("has no weights")
    return weight


def _product(
    weight: Tensor, a: Tensor, b: Tensor, irreps_in: Irreps, middle: Irreps, irreps_out: Irreps
) -> Tensor:
    """The weights of the map that two equivariant linear maps make one after the other."""
    first, second, both = (
        linear_function(*pair, False)
        for pair in ((irreps_in, middle), (middle, irreps_out), (irreps_in, irreps_out))
    )
    blocks = [
        {(p.i_in, p.i_out): (w.view(p.path_shape), p.path_weight) for p, w in _paths(f, x)}
        for f, x in ((first, a), (second, b))
    ]
    pieces = []
    for path, part in _paths(both, weight):
        total = torch.zeros_like(part)
        for i_mid in range(len(middle)):
            left = blocks[0].get((path.i_in, i_mid))
            right = blocks[1].get((i_mid, path.i_out))
            if left is not None and right is not None:
                ratio = left[1] * right[1] / path.path_weight
                total = total + ratio * (left[0] @ right[0]).reshape(-1)
        pieces.append(total)
    return torch.cat(pieces) if pieces else torch.zeros_like(weight)


def _paths(function: Linear, flat: Tensor) -> list[tuple[Instruction, Tensor]]:
    """The paths of a linear map with their weights."""
    sizes = [path.path_shape[0] * path.path_shape[1] for path in function.instructions]
    return list(zip(function.instructions, flat.split(sizes), strict=True))
