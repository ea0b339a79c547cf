"""Parameters of a model sorted into groups with their own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fpmace.errors import ConfigError, suggestion

_PREFIXES: dict[str, tuple[str, ...]] = {
    "embedding": ("node_embedding.", "radial_embedding."),
    "interactions": ("interactions.",),
    "products": ("products.",),
    "readouts": ("readouts.", "scale_shift."),
    "field_block": ("field_dependent_charges_map.",),
    "local_charges": ("lr_source_maps.", "layer_feature_mixer."),
    "local_electron_energy": ("local_electron_energy.",),
}
"""Group -> beginnings of parameter names; what fits nowhere is in the group ``other``."""

GROUPS: tuple[str, ...] = (*_PREFIXES, "other")
"""Names that a stage may use as ``<group>_lr``."""

_DECAYED_INTERACTION_PARTS = (".linear.weight", ".skip_tp.weight")
"""Linear maps of an interaction decay; the radial network does not."""


@dataclass(frozen=True)
class WeightDecays:
    """Weight decay of products and interactions, of field_block, and of local_charges."""

    weight_decay: float = 5e-7
    field_block: float = 0.0
    local_charges: float = 0.0

    def of(self, group: str, name: str) -> float:
        """Decay of one parameter of a group."""
        if group == "products":
            return self.weight_decay
        if group == "interactions":
            decays = name.endswith(_DECAYED_INTERACTION_PARTS)
            return self.weight_decay if decays else 0.0
        if group in ("field_block", "local_electron_energy"):
            return self.field_block
        return self.local_charges if group == "local_charges" else 0.0


def group_of(name: str) -> str:
    """Group of a parameter, by its name in the model."""
    short = name.removeprefix("backbone.")
    for group, prefixes in _PREFIXES.items():
        if short.startswith(prefixes):
            return group
    return "other"


def make_parameter_groups(
    model: nn.Module, *, lr: float, group_lrs: Mapping[str, float], decays: WeightDecays
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into optimizer groups, each parameter into exactly one.

    Args:
        lr: learning rate of groups that ``group_lrs`` does not name.
        group_lrs: group -> learning rate.

    Returns:
        Dicts with ``name``, ``params``, ``lr`` and ``weight_decay``; empty groups are left out.

    Raises:
        ConfigError: if ``group_lrs`` names a group that the model has no parameters in.
    """
    collected: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel() > 0:
            group = group_of(name)
            collected.setdefault((group, decays.of(group, name)), []).append(parameter)
    present = {group for group, _ in collected}
    for group in group_lrs:
        if group not in present:
            raise ConfigError(
                f"{group}_lr: this model has no trainable parameters in the group '{group}'"
                f"{suggestion(group, present)} (groups: {', '.join(sorted(present))})"
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
