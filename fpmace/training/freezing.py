"""Parts of a model that a stage does not train, and the table that shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prettytable import PrettyTable
from torch import nn

from fpmace.errors import ConfigError, suggestion
from fpmace.models.base import Model
from fpmace.training.parameter_groups import WeightDecays
from fpmace.training.stages import Stage

BACKBONE = ("embedding", "interactions", "products")
"""Groups that ``backbone`` stands for."""


def _short(name: str) -> str:
    return name.removeprefix("backbone.")


def block_of(name: str) -> str:
    """The block of a parameter as ``freeze`` names it: ``interactions.0``, ``readouts.1``."""
    parts = _short(name).split(".")
    return ".".join(parts[: 2 if len(parts) > 2 and parts[1].isdigit() else 1])


def _names_of(name: str, group: str) -> set[str]:
    """Everything that ``freeze`` may call a parameter."""
    parts = _short(name).split(".")
    found = {group, *(".".join(parts[: n + 1]) for n in range(len(parts)))}
    if group in BACKBONE:
        found |= {"backbone", f"backbone.{block_of(name)}"}
    if parts[0] in ("interactions", "products"):
        found.add(f"layer.{parts[1]}")
    return found


def frozen_parameters(model: Model, freeze: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters that ``freeze`` names.

    Args:
        freeze: groups of parameters, ``backbone``, ``layer.K``, or blocks and parameters by name,
            such as ``interactions.0`` or ``readouts``.

    Raises:
        ConfigError: a name that is none of the model; nothing is left to train.
    """
    trained = _trained(model)
    names = {name: _names_of(name, group) for name, (group, _) in trained.items()}
    for wanted in freeze:
        if not any(wanted in found for found in names.values()):
            groups = dict.fromkeys(group for group, _ in trained.values())
            known = list(dict.fromkeys([*groups, "backbone", *map(block_of, trained)]))
            raise ConfigError(
                f"the model has no part '{wanted}'{suggestion(wanted, known)} "
                f"(parts: {', '.join(known)}, layer.K)",
                where="freeze",
            )
    found = {n: item for n, (_, item) in trained.items() if names[n] & set(freeze)}
    if len(found) == len(trained):
        raise ConfigError(f"{', '.join(freeze)} leave nothing to train", where="freeze")
    return found


def _trained(model: Model) -> dict[str, tuple[str, nn.Parameter]]:
    """Group of each parameter that can be trained, by name."""
    groups = {id(p): group.name for group in model.parameter_groups() for p in group.parameters}
    return {n: (groups[id(p)], p) for n, p in model.named_parameters() if id(p) in groups}


@contextmanager
def frozen(model: Model, freeze: Sequence[str]) -> Iterator[None]:
    """Within the block the named parts take no gradients."""
    parameters = frozen_parameters(model, freeze) if freeze else {}
    for item in parameters.values():
        item.requires_grad_(False)
    try:
        yield
    finally:
        for item in parameters.values():
            item.requires_grad_(True)


def parameter_table(model: Model, stages: Sequence[Stage], decays: WeightDecays) -> str:
    """Blocks with their group, size and weight decay, and the learning rate in each stage.

    Raises:
        ConfigError: see :func:`frozen_parameters`.
    """
    trained = _trained(model)
    decay = {
        id(p): decays.of(group) for group in model.parameter_groups() for p in group.parameters
    }
    still = [set(frozen_parameters(model, s.freeze)) if s.freeze else set() for s in stages]
    rows: dict[tuple[str, ...], int] = {}
    for name, (group, item) in trained.items():
        rates = (
            "frozen" if name in names else f"{stage.group_lrs.get(group, stage.lr):g}"
            for stage, names in zip(stages, still, strict=True)
        )
        row = (block_of(name), group, f"{decay[id(item)]:g}", *rates)
        rows[row] = rows.get(row, 0) + item.numel()
    table = PrettyTable()
    table.field_names = ["block", "group", "numbers", "decay", *(f"lr {s.name}" for s in stages)]
    table.align = "l"
    for (block, group, shown, *columns), count in rows.items():
        table.add_row([block, group, count, shown, *columns])
    return table.get_string()
