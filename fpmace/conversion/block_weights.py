"""Weights of a backbone for another choice of elements, neighbours and last layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from fpmace.errors import ConfigError


@dataclass(frozen=True)
class BackboneSizes:
    """What differs between the backbone that gives and the one that takes.

    Attributes:
        n_channels: features of each degree.
        n_known: number of elements of the giving model.
        rows: index there of each element of the taking model.
        neighbours: average number of neighbours of the taking model over that of the giving one.
        divided: interactions whose messages are divided by that number.
    """

    n_channels: int
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
    name: str, given: Tensor | None, target: Tensor, sizes: BackboneSizes
) -> tuple[Tensor | None, str]:
    """The first values of a parameter, and what was changed in them.

    A last layer with vectors has more weights than one with scalars only; the weights of the
    scalars come first, so the values may be fewer than those of ``target``.

    Args:
        name: of the parameter in both models.
        given: its values in the giving model, None if it has no such parameter.
        target: the parameter of the taking model.

    Returns:
        (None, "") if the parameter is new.

    Raises:
        ConfigError: if the parameter has another form.
    """
    if given is None:
        return None, ""
    value, notes = given.detach().to(target.dtype), []
    if _SELECTED.fullmatch(name) is not None and not sizes.all_elements:
        value = _select_elements(name, value, sizes)
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


_SELECTED = re.compile(
    r"backbone\.(node_embedding\.linear\.weight|interactions\.\d+\.skip_tp\.weight|"
    r"products\.\d+\.symmetric_contractions\.contractions\.\d+\.weights(_max|\.\d+))"
)
_LAST = re.compile(r"backbone\.(interactions\.\d+\.skip_tp|products\.\d+\.linear)\.weight")
_MESSAGE = re.compile(r"backbone\.interactions\.(\d+)\.linear\.weight")


def _select_elements(name: str, value: Tensor, sizes: BackboneSizes) -> Tensor:
    if ".contractions." in name:
        return value[sizes.rows]
    if ".skip_tp." in name:
        n = sizes.n_channels
        blocks = value.view(-1, n, sizes.n_known, n)
        return blocks[:, :, sizes.rows] * sizes.element_scale
    return value.view(sizes.n_known, -1)[sizes.rows] * sizes.element_scale
