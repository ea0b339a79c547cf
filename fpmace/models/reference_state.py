"""Weights of reference models (original MACE parameter names) copied into fpmace models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fpmace.errors import ModelFileError

_BACKBONE_PARTS = ("node_embedding", "interactions", "products")

_CHAIN_PARTS = ("field_dependent_charges_map", "local_electron_energy")
"""Parts that may hold a many-body chain, whose entries the reference does not nest."""

_CONSTANTS = (
    r"(.*\.)?conv_tp\.weight",
    r"(.*\.)?weights_(max|\d+)_zeroed",
    r"(.*\.)?(U_matrix_\d+|U_tensors\.\d+|graph_opt_main\..*|contractions_weighting\..*)",
    r"(.*\.)?output_mask",
    r"radial_embedding\..*",
    r"(electric_potential_descriptor|coulomb_energy)\..*",
    r"external_field_contribution(_internal)?\.matrix",
    r"(.*\.)?field_norm_factor",
    r"(.*\.)?equivariant_nonlin\..*",
    r"num_interactions|r_max|atomic_numbers|kspace_cutoff",
)
"""Entries that carry no trained numbers: constants that the configuration implies."""


@dataclass
class StateReport:
    """What became of the entries of a reference state dict.

    Attributes:
        taken: names copied into the model.
        ignored: constants that the model makes itself, and empty entries.
        unknown: names that fit nothing in the model.
        missing: parameters and buffers of the model that no entry provided (the model's names).
    """

    taken: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def require_complete(self, where: str) -> None:
        """Demand that nothing was left over and nothing is missing.

        Raises:
            ModelFileError: naming the entries.
        """
        if self.unknown or self.missing:
            raise ModelFileError(
                f"{where}: the weights do not fit the model; without a place in the model: "
                f"{', '.join(self.unknown) or 'none'}; without a value: "
                f"{', '.join(self.missing) or 'none'}; check the configuration"
            )


def load_reference_state(model: nn.Module, state: Mapping[str, Tensor]) -> StateReport:
    """Copy a reference state dict into ``model`` by name.

    Names are those of MACE (``interactions.0.linear_up.weight``, ...); entries of the backbone go
    to ``model.backbone``. Copies in place, into the model's own dtype and device.

    Args:
        model: a model with the same configuration.
        state: tensors by reference name.

    Returns:
        The report; call :meth:`StateReport.require_complete` to be strict.

    Raises:
        ModelFileError: if a shape or an implied constant (cutoff, elements, Bessel roots)
            differs.
    """
    _check_constants(model, state)
    own = model.state_dict(keep_vars=True)
    report = StateReport()
    filled: set[str] = set()
    with torch.no_grad():
        for name, value in state.items():
            target = _own_name(name, own)
            if target is not None:
                _copy(name, value, own[target])
                filled.add(target)
                report.taken.append(name)
            elif value.numel() == 0 or any(re.fullmatch(p, name) for p in _CONSTANTS):
                report.ignored.append(name)
            else:
                report.unknown.append(name)
    report.missing = [name for name in own if name not in filled and own[name].numel() > 0]
    return report


def reference_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors under their reference names; inverse of :func:`load_reference_state`."""
    return {
        name.removeprefix("backbone.").replace(".chain.", ".", 1): value
        for name, value in model.state_dict().items()
    }


def _own_name(name: str, own: Mapping[str, Tensor]) -> str | None:
    candidates = [name]
    head, _, tail = name.partition(".")
    if head in _BACKBONE_PARTS:
        candidates.insert(0, f"backbone.{name}")
    if head in _CHAIN_PARTS:
        candidates.append(f"{head}.chain.{tail}")
    return next((item for item in candidates if item in own and own[item].numel() > 0), None)


def _copy(name: str, value: Tensor, target: Tensor) -> None:
    if value.numel() != target.numel() or (
        value.shape != target.shape and min(value.dim(), target.dim()) > 1
    ):
        raise ModelFileError(
            f"{name}: shape {list(value.shape)} does not fit the model's {list(target.shape)}; "
            "the configuration describes another model"
        )
    target.copy_(value.reshape(target.shape))


def _check_constants(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    r_max = getattr(model, "r_max", None)
    if r_max is not None and "r_max" in state and abs(float(state["r_max"]) - r_max) > 1e-6:
        raise ModelFileError(
            f"r_max: the weights were trained with {float(state['r_max'])}, the model has {r_max}"
        )
    numbers = getattr(model, "atomic_numbers", None)
    if numbers is not None and "atomic_numbers" in state:
        given, own = state["atomic_numbers"].tolist(), torch.as_tensor(numbers).tolist()
        if given != own:
            raise ModelFileError(
                f"atomic_numbers: the weights were trained for {given}, the model has {own}"
            )
    roots = state.get("radial_embedding.bessel_fn.bessel_weights")
    basis = next(
        (m for n, m in model.named_modules() if n.endswith("radial_embedding.basis")), None
    )
    expected = getattr(basis, "bessel_weights", None)
    if roots is None or expected is None:
        return
    if roots.shape != expected.shape or not torch.allclose(
        roots.to(expected), expected, rtol=1e-5, atol=0.0
    ):
        raise ModelFileError(
            "radial_embedding.bessel_fn.bessel_weights: differ from n pi / r_max; trained Bessel "
            "roots are not supported"
        )
