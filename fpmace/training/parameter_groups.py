"""Parameters of a model sorted into groups with their own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

from fpmace.errors import ConfigError, suggestion
from fpmace.models.base import GROUPS, Model, ParameterGroup

__all__ = ["GROUPS", "WeightDecays", "make_parameter_groups"]


@dataclass(frozen=True)
class WeightDecays:
    """Weight decay of field_block and local_electron_energy, of local_charges, of all else.

    Attributes:
        groups: of single groups, in place of those; also of groups that have none by default.
    """

    weight_decay: float = 5e-7
    field_block: float = 0.0
    local_charges: float = 0.0
    groups: Mapping[str, float] = field(default_factory=dict)

    def of(self, group: ParameterGroup) -> float:
        """Decay of a group of parameters."""
        undecayed = not group.decays and group.name == "interactions"
        if group.name in self.groups and not undecayed:
            return self.groups[group.name]
        if not group.decays:
            return 0.0
        if group.name in ("field_block", "local_electron_energy"):
            return self.field_block
        return self.local_charges if group.name == "local_charges" else self.weight_decay


def make_parameter_groups(
    model: Model,
    *,
    lr: float,
    group_lrs: Mapping[str, float],
    decays: WeightDecays,
    idle: Collection[str] = (),
) -> list[dict[str, object]]:
    """Sort the trainable parameters into optimizer groups, each parameter into exactly one.

    Args:
        lr: learning rate of groups that ``group_lrs`` does not name.
        group_lrs: group -> learning rate.
        idle: groups that may be empty, as their parameters are frozen.

    Returns:
        Dicts with ``name``, ``params``, ``lr`` and ``weight_decay``; empty groups are left out.

    Raises:
        ConfigError: if ``group_lrs`` names a group that the model has no parameters in.
    """
    own = _by_parameter(model)
    collected: dict[tuple[str, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if id(parameter) in own:
            group = own[id(parameter)]
            collected.setdefault((group.name, decays.of(group)), []).append(parameter)
    present = {group for group, _ in collected}
    for name in group_lrs:
        if name not in present and name not in idle:
            raise ConfigError(
                f"{name}_lr: this model has no trainable parameters in the group '{name}'"
                f"{suggestion(name, present)} (groups: {', '.join(sorted(present))})"
            )
    return [
        {
            "name": f"{group}_decay" if decay > 0 else group,
            "params": parameters,
            "lr": group_lrs.get(group, lr),
            "weight_decay": decay,
        }
        for (group, decay), parameters in collected.items()
    ]


def _by_parameter(model: Model) -> dict[int, ParameterGroup]:
    """The group of each parameter, which must be in exactly one."""
    found: dict[int, list[ParameterGroup]] = {}
    for group in model.parameter_groups():
        for parameter in group.parameters:
            found.setdefault(id(parameter), []).append(group)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel() > 0:
            groups = [group.name for group in found.get(id(parameter), [])]
            if len(groups) != 1:
                raise ConfigError(
                    f"{type(model).__name__}.parameter_groups: the parameter '{name}' must be in "
                    f"one group, it is in {', '.join(groups) or 'none'}"
                )
    return {key: groups[0] for key, groups in found.items()}
