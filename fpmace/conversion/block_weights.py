"""Weights of a backbone for another choice of elements, neighbours and last layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import sqrt

from torch import Tensor, nn

from fpmace.blocks.embedding import ElementTable
from fpmace.blocks.linear import ElementLinear
from fpmace.errors import ConfigError


@dataclass(frozen=True)
class BackboneSizes:
    """What differs between the backbone that gives and the one that takes.

    Attributes:
        n_known: number of elements of the giving model.
        rows: index there of each element of the taking model.
        neighbours: average number of neighbours of the taking model over that of the giving one.
        divided: interactions whose messages are divided by that number.
    """

    n_known: int
    rows: list[int]
    neighbours: float
    divided: frozenset[int]

    @property
    def element_scale(self) -> float:
        """Maps that see the one-hot element are divided by the root of the number of elements."""
        return sqrt(len(self.rows) / self.n_known)

    @property
    def all_elements(self) -> bool:
        return self.rows == list(range(self.n_known))


def adapted(
    name: str, source: nn.Module, target: Tensor, sizes: BackboneSizes
) -> tuple[Tensor | None, str]:
    """The first values of a parameter, and what was changed in them.

    A last layer with vectors has more weights than one with scalars only; the weights of the
    scalars come first, so the values may be fewer than those of ``target``.

    Args:
        name: of the parameter in both models.
        source: the giving model.
        target: the parameter of the taking model.

    Returns:
        (None, "") if the parameter is new.

    Raises:
        ConfigError: if the parameter has another form.
    """
    path, _, own = name.rpartition(".")
    if name not in dict(source.named_parameters()):
        return None, ""
    given = source.get_parameter(name)
    value, notes = given.detach().to(target), []
    if not sizes.all_elements:
        chosen = _select_elements(source, path, own, value, target, sizes)
        if chosen is not value:
            value = chosen
            notes.append("elements selected")
    match = _MESSAGE.fullmatch(name)
    if match and int(match[1]) in sizes.divided and sizes.neighbours != 1.0:
        value = value * sizes.neighbours
        notes.append("rescaled to the average number of neighbours")
    if value.numel() != target.numel() and _LAST.fullmatch(name) is None:
        raise ConfigError(
            f"'{name}' has {value.numel()} weights in the file, {target.numel()} here; its block "
            "has another form",
            where="foundation_model",
        )
    if value.numel() > target.numel():
        value = value.reshape(-1)[: target.numel()]
        notes.append("scalars only")
    elif value.numel() < target.numel():
        notes.append("the part for vectors is new")
    return value, "; ".join(notes)


_LAST = re.compile(r"backbone\.(interactions\.\d+\.skip_tp|products\.\d+\.linear)\.weight")
_MESSAGE = re.compile(r"backbone\.interactions\.(\d+)\.linear\.weight")


def _select_elements(
    source: nn.Module, path: str, own: str, value: Tensor, target: Tensor, sizes: BackboneSizes
) -> Tensor:
    """The rows of the elements, as the module that holds the parameter lays them out."""
    module = source.get_submodule(path)
    if isinstance(module, ElementTable):
        return value.view(sizes.n_known, -1)[sizes.rows] * sizes.element_scale
    if isinstance(module, ElementLinear):
        return module.select_elements(value, sizes.rows) * sizes.element_scale
    rows = value.dim() > 1 and len(value) == sizes.n_known
    if rows and value.shape[1:] == target.shape[1:] and len(target) == len(sizes.rows):
        return value[sizes.rows]
    return value
