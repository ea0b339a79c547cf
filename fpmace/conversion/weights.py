"""Weights of a foreign model copied into an fpmace model, with an account of every entry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from fpmace.errors import ModelFileError

Fate = Literal["taken", "renamed", "re-expressed", "constant", "not understood", "missing"]

CONSTANTS = {
    r"(.*\.)?output_mask": "marks which outputs have a path",
    r"(.*\.)?U_(matrix_|tensors\.)\d+": "coupling coefficients; compared with those of fpmace",
    r"(.*\.)?(graph_opt_main|contractions_weighting|equivariant_nonlin)\..*": (
        "compiled forms of what other entries say"
    ),
    r"(.*\.)?weights_(max|\d+)_zeroed": "marks polynomials without paths",
    r"(.*\.)?conv_tp\.weight": "place holder of weights that the radial network gives",
    r"radial_embedding\.bessel_fn\.(bessel_weights|gaussian_weights|prefactor|r_max|n)": (
        "follows from r_max and num_bessel; compared"
    ),
    r"radial_embedding\.cutoff_fn\.(p|r_max)|pair_repulsion_fn\.p": (
        "follows from the configuration"
    ),
    r"num_interactions|r_max|atomic_numbers|kspace_cutoff": "part of the configuration",
    r"(electric_potential_descriptor|coulomb_energy)\..*": "constants of the electrostatics",
    r"external_field_contribution(_internal)?\.matrix": "constants of the electrostatics",
    r"(field_dependent_charges_maps?(\.\d+)?|local_electron_energy)\.field_norm_factor": (
        "without effect in the original"
    ),
}
"""Entries that carry no trained numbers, and why."""


@dataclass(frozen=True)
class WeightFate:
    """What became of one entry of the foreign model, or of fpmace's model if ``missing``.

    Attributes:
        name: in the foreign model (in fpmace's model if missing).
        fate: ``taken`` as is under the same name, ``renamed``, ``re-expressed`` in another basis,
            ``constant`` (ignored), ``not understood`` or ``missing``.
        target: name in fpmace's model.
        shape: of the tensor.
        note: the reason, or what was done.
    """

    name: str
    fate: Fate
    target: str = ""
    shape: tuple[int, ...] = ()
    note: str = ""


@dataclass
class WeightsReport:
    """The fate of every entry, in the order of the file."""

    entries: list[WeightFate] = field(default_factory=list)

    def count(self, fate: Fate) -> int:
        return sum(entry.fate == fate for entry in self.entries)

    def names(self, fate: Fate) -> list[str]:
        return [entry.name for entry in self.entries if entry.fate == fate]

    def require_complete(self, where: str) -> None:
        """Demand that nothing is left over and nothing missing.

        Raises:
            ModelFileError: naming the entries.
        """
        left, missing = self.names("not understood"), self.names("missing")
        if left or missing:
            raise ModelFileError(
                f"{where}: no model was written: entries not understood: "
                f"{', '.join(left) or 'none'}; parameters of fpmace without a value: "
                f"{', '.join(missing) or 'none'}"
            )


def reference_name(name: str) -> str:
    """The name that MACE gives to fpmace's parameter or buffer ``name``."""
    short = name.removeprefix("backbone.").replace("radial_embedding.basis.", _BASIS)
    return short.replace(".chain.", ".", 1)


_BASIS = "radial_embedding.bessel_fn."


def check_constants(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Demand that cutoff, elements and radial functions of a state dict are those of ``model``.

    Raises:
        ModelFileError: naming the entry.
    """
    for name in ("r_max", "atomic_numbers"):
        own, given = getattr(model, name, None), state.get(name)
        if own is None or given is None:
            continue
        mine = torch.as_tensor(own, dtype=torch.float64).reshape(-1).cpu()
        if mine.shape != given.reshape(-1).shape or not torch.allclose(
            given.reshape(-1).to(mine), mine, rtol=0.0, atol=1e-6
        ):
            raise ModelFileError(
                f"{where}: {name}: the weights were trained for {given.tolist()}, the model has "
                f"{mine.tolist()}"
            )
    for name in ("bessel_weights", "gaussian_weights"):
        given = state.get(f"radial_embedding.bessel_fn.{name}")
        own = getattr(model.get_submodule("backbone.radial_embedding.basis"), name, None)
        if given is None or own is None or isinstance(own, nn.Parameter):
            continue
        if given.shape != own.shape or not torch.allclose(given.to(own), own, rtol=1e-5):
            raise ModelFileError(
                f"{where}: radial_embedding.bessel_fn.{name} are not those of r_max and "
                "num_bessel; trained radial functions are not supported"
            )


def copy_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> WeightsReport:
    """Copy a state dict with MACE's names into ``model``, in place.

    Args:
        model: has the configuration of the foreign model.
        state: tensors by name, as in the foreign model's state dict.
        where: the file, for messages.
        notes: what was done to an entry before, by name; such entries are ``re-expressed``.

    Returns:
        The report; call :meth:`WeightsReport.require_complete` on it.

    Raises:
        ModelFileError: if a shape does not fit, or a value is not finite.
    """
    own = model.state_dict(keep_vars=True)
    targets = {reference_name(name): name for name in own}
    report = WeightsReport()
    filled: set[str] = set()
    with torch.no_grad():
        for name, value in state.items():
            target = targets.get(name)
            shape = tuple(value.shape)
            if target is not None and own[target].numel() > 0:
                _copy(where, name, value, own[target])
                filled.add(target)
                fate: Fate = "taken" if target == name else "renamed"
                fate = "re-expressed" if name in notes else fate
                report.entries.append(WeightFate(name, fate, target, shape, notes.get(name, "")))
            else:
                report.entries.append(_ignored(name, value, notes.get(name, "empty")))
    for target, tensor in own.items():
        if target not in filled and tensor.numel() > 0:
            report.entries.append(WeightFate(target, "missing", target, tuple(tensor.shape)))
    return report


def _copy(where: str, name: str, value: Tensor, target: Tensor) -> None:
    flat = min(value.dim(), target.dim()) <= 1
    if value.numel() != target.numel() or (value.shape != target.shape and not flat):
        raise ModelFileError(
            f"{where}: '{name}' has shape {list(value.shape)}, where the configuration read from "
            f"the file needs {list(target.shape)}; the model is of a form not supported"
        )
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise ModelFileError(f"{where}: '{name}' has values that are not finite")
    target.copy_(value.reshape(target.shape))


def _ignored(name: str, value: Tensor, if_empty: str) -> WeightFate:
    shape = tuple(value.shape)
    if value.numel() == 0:
        return WeightFate(name, "constant", shape=shape, note=if_empty)
    for pattern, reason in CONSTANTS.items():
        if re.fullmatch(pattern, name):
            return WeightFate(name, "constant", shape=shape, note=reason)
    return WeightFate(name, "not understood", shape=shape)
