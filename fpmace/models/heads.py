"""Heads of a model: which one is meant, one as a model of its own, one put into several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import torch
from e3nn.o3 import Irreps
from torch import Tensor

from fpmace import registry
from fpmace.annotations import Options
from fpmace.errors import ConfigError, suggestion
from fpmace.models.base import Model

_PER_HEAD = ("atomic_energies", "atomic_inter_scale", "atomic_inter_shift")
"""Options with a value for each of several heads."""


def head_place(heads: Sequence[str], name: str | None) -> int:
    """Place of a head in a model; the only one need not be named.

    Raises:
        ConfigError: listing the heads, if it is missing or not one of them.
    """
    if name is None and len(heads) == 1:
        return 0
    if name is None:
        raise ConfigError(f"missing; the model has {', '.join(heads)}: name one", where="head")
    if name not in heads:
        raise ConfigError(
            f"the model has no head '{name}'{suggestion(name, heads)} (it has {', '.join(heads)})",
            where="head",
        )
    return heads.index(name)


def energies_by_head(config: Mapping[str, Any]) -> list[dict[int, float]]:
    """Energies of the free atoms in a model's options, eV by atomic number, of each head."""
    numbers, energies = (config.get(f"atomic_{name}") or () for name in ("numbers", "energies"))
    rows = energies if len(config.get("heads") or ()) > 1 else [energies]
    return [
        {int(z): float(energy) for z, energy in zip(numbers, row, strict=True)} for row in rows
    ]


def options_of_heads(config: Mapping[str, Any], names: Sequence[str], rows: list[int]) -> Options:
    """Options of a model whose heads are those at ``rows`` of the given one, renamed."""
    found = {**config, "heads": list(names)}
    n_heads = len(config.get("heads") or ("Default",))
    for option in _PER_HEAD:
        if option in config:
            value = config[option]
            each = value if n_heads > 1 and isinstance(value, list | tuple) else [value] * n_heads
            chosen = [each[row] for row in rows]
            found[option] = chosen if len(rows) > 1 else chosen[0]
    return found


def weights_of_heads(
    name: str, value: Tensor, n_heads: int, rows: list[int], n_hidden: int
) -> Tensor:
    """A tensor of a model for the heads at ``rows`` of its ``n_heads``, such that energies stay.

    What a readout would make of the hidden features of other heads is never used, and zero here.
    Maps from hidden features are normalised by the number of those of all heads.

    Args:
        n_hidden: hidden features of a head in the last readout.
    """
    if name.startswith(("atomic_energies_fn.", "scale_shift.")):
        each = value if n_heads > 1 else value.unsqueeze(0)
        return each[rows] if len(rows) > 1 else each[rows[0]]
    if not name.startswith(("readouts.", "embedding_readout.")) or rows == list(range(n_heads)):
        return value
    block, kind = name.split(".")[-2:]
    if block == "linear" or (block == "linear_2" and kind == "bias"):
        return value.view(-1, n_heads)[:, rows].reshape(-1)
    if block == "linear_1" or kind == "bias":
        return value.view(-1, n_heads, n_hidden)[:, rows].reshape(-1)
    width = n_hidden if block == "linear_mid" else 1
    given = value.view(n_heads, n_hidden, n_heads, width)
    made = value.new_zeros(len(rows), n_hidden, len(rows), width)
    for place, row in enumerate(rows):
        made[place, :, place] = sqrt(len(rows) / n_heads) * given[row, :, row]
    return made.reshape(-1)


def with_heads(model: Model, names: Sequence[str], rows: list[int]) -> Model:
    """The same model with heads ``names``, made of those at ``rows``; energies are the same."""
    n_heads, n_hidden = len(model.heads), Irreps(model.config["MLP_irreps"]).dim
    config = options_of_heads(model.config, names, rows)
    made: Model = registry.build("model", config, where="model")
    state = model.state_dict()
    made.to(dtype=next(v.dtype for v in state.values() if v.is_floating_point()))
    with torch.no_grad():
        made.load_state_dict(
            {n: weights_of_heads(n, v, n_heads, rows, n_hidden) for n, v in state.items()}
        )
    made.metadata = dict(model.metadata)
    return made.train(model.training)


def of_one_head(model: Model, name: str | None) -> Model:
    """One head of a model as a model of its own, with the same numbers.

    Raises:
        ConfigError: see :func:`head_place`.
    """
    place = head_place(model.heads, name)
    made = with_heads(model, [model.heads[place]], [place])
    by_head = model.metadata.get("keys", {}).get("heads", {})
    if model.heads[place] in by_head:
        made.metadata["keys"] = by_head[model.heads[place]]
    return made
