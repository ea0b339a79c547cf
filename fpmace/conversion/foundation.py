"""Training that starts from the backbone of a trained model.

Backbone and energy readouts are copied, element by element; all blocks that deal with density and
field keep their initial weights. Energies do not depend on the order of the vector components, so
weights of MACE (x, y, z) serve the fixed-point model (y, z, x) as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from ase.data import chemical_symbols
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Options
from fpmace.blocks.linear import uniform_multiplicity
from fpmace.conversion.block_weights import BackboneSizes, adapted
from fpmace.conversion.convert import convert_file
from fpmace.conversion.safe_archive import read_foreign_archive
from fpmace.errors import ConfigError
from fpmace.models.io import FORMAT, load_model

MUST_MATCH = {
    "r_max": "r_max",
    "num_bessel": "num_radial_basis",
    "num_polynomial_cutoff": "num_cutoff_basis",
    "radial_type": "radial_type",
    "radial_MLP": "radial_MLP",
    "max_ell": "max_ell",
    "num_interactions": "num_interactions",
    "hidden_irreps": "hidden_irreps",
    "correlation": "correlation",
    "interaction_cls_first": "interaction_first",
    "interaction_cls": "interaction",
    "MLP_irreps": "MLP_irreps",
    "gate": "gate",
}
"""Options of a model that give the backbone its form, and the names that training gives them."""


@dataclass
class FoundationReport:
    """What was taken from the foundation model.

    Attributes:
        source: the file and the type of its model.
        elements: symbols of the elements taken.
        copied: parameters taken as they are.
        adapted: parameters taken with a change, and the change.
        new: parameters that keep their initial values.
        notes: changes of the energy's zero and scale.
    """

    source: str
    elements: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"started from {self.source}: elements {', '.join(self.elements)}; "
            f"{len(self.copied)} parameters copied, {len(self.adapted)} adapted, "
            f"{len(self.new)} new",
            *self.notes,
        ]
        return "\n".join(lines)


def load_foundation(path: str | Path) -> nn.Module:
    """Load a model file of fpmace, or convert one of mace-torch or mace-scf.

    Raises:
        ModelFileError: if it is neither, or cannot be used.
    """
    content = read_foreign_archive(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return load_model(path)
    return convert_file(path).model


def foundation_atomic_energies(path: str | Path) -> dict[int, float]:
    """E0 in eV by atomic number of a foundation model, for training with its E0s.

    Raises:
        ModelFileError: see :func:`load_foundation`.
    """
    config = _config(load_foundation(path))
    return dict(zip(config["atomic_numbers"], config["atomic_energies"], strict=True))


def apply_foundation(model: nn.Module, path: str | Path) -> FoundationReport:
    """Copy backbone and energy readouts of a trained model into ``model``, in place.

    ``model`` keeps its own atomic energies. If the foundation model scales and shifts the energy
    of its readouts, a ``ScaleShiftMACE`` takes over scale and shift; other models get the scale
    in the weights of their readouts and the shift in their atomic energies.

    Args:
        model: a new MACE, ScaleShiftMACE or FixedPoint model; its elements must be among those
            of the foundation model.
        path: a model file of fpmace, mace-torch or mace-scf.

    Raises:
        ConfigError: if the backbones differ in form, or an element is missing.
        ModelFileError: if the file cannot be used.
    """
    source = load_foundation(path)
    config, given = _config(model), _config(source)
    _check_options(path, config, given)
    rows = _element_rows(path, config["atomic_numbers"], given["atomic_numbers"])
    report = FoundationReport(
        source=f"{path} ({given['type']})",
        elements=[chemical_symbols[number] for number in config["atomic_numbers"]],
    )
    _copy_backbone(model, source, rows, report)
    _take_over_scale(model, source, report)
    touched = {*report.copied, *report.adapted}
    report.new = [name for name, _ in model.named_parameters() if name not in touched]
    return report


def _config(model: nn.Module) -> Options:
    config = getattr(model, "config", None)
    if not isinstance(config, dict) or not hasattr(model, "backbone"):
        raise ConfigError(
            f"{type(model).__name__} has no backbone to start from",
            where="foundation_model",
        )
    return config


def _check_options(path: str | Path, config: Options, given: Options) -> None:
    differing = []
    for option, flag in MUST_MATCH.items():
        theirs, ours = _canonical(option, given), _canonical(option, config)
        if theirs != ours:
            differing.append(f"{flag} {_shown(theirs)} (here {_shown(ours)})")
    if differing:
        raise ConfigError(
            f"{path} has another backbone than this training: {'; '.join(differing)}; "
            "give the values of the file",
            where="foundation_model",
        )


def _canonical(option: str, config: Options) -> object:
    """A value in a form that compares equal where the models are equal."""
    value = config[option]
    if option == "correlation":
        return [value] * config["num_interactions"] if isinstance(value, int) else list(value)
    if option in ("hidden_irreps", "MLP_irreps"):
        return str(Irreps(value))
    if option == "r_max":
        return round(float(value), 6)
    if option == "gate":
        return str(value)
    if isinstance(value, str):
        return {"type": value}
    return list(value) if isinstance(value, tuple) else value


def _shown(value: object) -> str:
    if isinstance(value, Mapping) and set(value) == {"type"}:
        return str(value["type"])
    return str(value)


def _element_rows(path: str | Path, wanted: list[int], known: list[int]) -> list[int]:
    missing = [chemical_symbols[number] for number in wanted if number not in known]
    if missing:
        raise ConfigError(
            f"{path} does not know the elements {', '.join(missing)} of the data (it knows "
            f"{', '.join(chemical_symbols[number] for number in known)})",
            where="foundation_model",
        )
    return [known.index(number) for number in wanted]


def _copy_backbone(
    model: nn.Module, source: nn.Module, rows: list[int], report: FoundationReport
) -> None:
    config, given = _config(model), _config(source)
    sizes = BackboneSizes(
        n_channels=uniform_multiplicity(Irreps(config["hidden_irreps"])),
        n_known=len(given["atomic_numbers"]),
        rows=rows,
        neighbours=float(config["avg_num_neighbors"]) / float(given["avg_num_neighbors"]),
        divided=_divides_by_neighbours(model),
    )
    theirs = dict(source.named_parameters())
    with torch.no_grad():
        for name, target in model.named_parameters():
            if name.partition(".")[0] not in ("backbone", "readouts") or target.numel() == 0:
                continue
            value, note = adapted(name, theirs.get(name), target, sizes)
            if value is None:
                continue
            _write(target, value)
            if note:
                report.adapted[name] = note
            else:
                report.copied.append(name)


def _write(target: Tensor, value: Tensor) -> None:
    """Copy ``value`` to the beginning of ``target``; the rest keeps its values."""
    flat = target.view(-1)
    flat[: value.numel()].copy_(value.reshape(-1))


def _divides_by_neighbours(model: nn.Module) -> frozenset[int]:
    """Indices of the interactions that divide by the average number of neighbours."""
    interactions = model.get_submodule("backbone.interactions").children()
    return frozenset(
        index for index, item in enumerate(interactions) if not getattr(item, "density", True)
    )


def _take_over_scale(model: nn.Module, source: nn.Module, report: FoundationReport) -> None:
    scale, shift = _scale_and_shift(source)
    own = getattr(model, "scale_shift", None)
    config = _config(model)
    if own is not None:
        own.scale.fill_(scale)
        own.shift.fill_(shift)
        config.update(atomic_inter_scale=scale, atomic_inter_shift=shift)
        report.notes.append(f"energy of the readouts: scale {scale:.6g}, shift {shift:.6g} eV")
        return
    if (scale, shift) == (1.0, 0.0):
        return
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_last = name.startswith("readouts.") and not name.endswith("linear_1.weight")
            if is_last and (name in report.copied or name in report.adapted):
                parameter.mul_(scale)
                report.adapted[name] = f"times the scale {scale:.6g}"
    report.copied = [name for name in report.copied if name not in report.adapted]
    energies: Tensor = model.get_buffer("atomic_energies_fn.atomic_energies")
    energies.add_(shift)
    config["atomic_energies"] = [value + shift for value in config["atomic_energies"]]
    report.notes.append(
        f"scale {scale:.6g} went into the readouts, shift {shift:.6g} eV into the atomic energies"
    )


def _scale_and_shift(source: nn.Module) -> tuple[float, float]:
    block = getattr(source, "scale_shift", None)
    return (1.0, 0.0) if block is None else (float(block.scale), float(block.shift))
