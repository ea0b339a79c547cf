"""Training that starts from the backbone of a trained model.

Backbone and energy readouts are copied, element by element; all blocks that deal with density and
field keep their initial weights. Energies do not depend on the order of the vector components, so
weights of MACE (x, y, z) serve the fixed-point model (y, z, x) as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from pathlib import Path

import torch
from ase.data import chemical_symbols
from e3nn.o3 import Irreps
from torch import Tensor, nn

from fpmace.annotations import Options
from fpmace.conversion.block_weights import BackboneSizes, adapted
from fpmace.conversion.convert import convert_file
from fpmace.conversion.safe_archive import read_foreign_archive
from fpmace.errors import ConfigError
from fpmace.models.backbone_model import BackboneModel
from fpmace.models.base import Model
from fpmace.models.heads import energies_by_head, head_place, with_heads
from fpmace.models.io import FORMAT, load_model

_OWN = ("atomic_numbers", "atomic_energies", "avg_num_neighbors", "heads")
"""Options of a backbone that a training finds for itself."""

MUST_MATCH = tuple(
    name for name in signature(BackboneModel.__init__).parameters if name not in ("self", *_OWN)
)
"""Options of a model that give the backbone its form, and the names that training gives them."""

_TAKEN = ("backbone", "readouts", "pair_repulsion_fn", "joint_embedding", "embedding_readout")
"""Parts that a model of another family takes too."""


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
            *self._named("copied", dict.fromkeys(self.copied, "")),
            *self._named("adapted", self.adapted),
            *self._named("new", dict.fromkeys(self.new, "")),
        ]
        return "\n".join(lines)

    @staticmethod
    def _named(fate: str, names: Mapping[str, str]) -> list[str]:
        """Lines with the tensors of each block, and what was changed in them."""
        blocks: dict[tuple[str, str], int] = {}
        for name, change in names.items():
            parts = name.split(".")
            block = ".".join(parts[: 3 if parts[0] == "backbone" else 2])
            block = block.removesuffix(".linear").removesuffix(".weight")
            blocks[block, change] = blocks.get((block, change), 0) + 1
        return [
            f"  {fate}: {block} ({count} tensors){f', {change}' if change else ''}"
            for (block, change), count in blocks.items()
        ]


def load_foundation(path: str | Path) -> Model:
    """Load a model file of fpmace, or convert one of mace-torch or mace-scf.

    Raises:
        ModelFileError: if it is neither, or cannot be used.
    """
    place = Path(path)
    changed = place.stat().st_mtime_ns if place.is_file() else 0
    return _load_once(str(path), changed)


@lru_cache(maxsize=1)
def _load_once(path: str, changed: int) -> Model:
    """A training asks for options, energies and weights of the same file in turn."""
    content = read_foreign_archive(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return load_model(path)
    model = convert_file(path).model
    assert isinstance(model, Model)
    return model


def foundation_atomic_energies(path: str | Path, head: str | None = None) -> dict[int, float]:
    """E0 in eV by atomic number of a foundation model, for training with its E0s.

    Args:
        head: of a model with several.

    Raises:
        ModelFileError: see :func:`load_foundation`.
        ConfigError: the head is missing or unknown.
    """
    source = load_foundation(path)
    return energies_by_head(_config(source))[_head(source, head)]


def _head(source: Model, name: str | None) -> int:
    try:
        return head_place(source.heads, name)
    except ConfigError as error:
        raise ConfigError(error.message, where="foundation_head") from error


def head_rows(source: Model, heads: Sequence[str], name: str | None) -> list[int]:
    """The head of the foundation model that each head of a new model starts from.

    Args:
        heads: names of the new heads; those that the foundation model has too start from them.
        name: the head that the others start from.
    """
    several = len(source.heads) > 1 and len(heads) > 1
    return [
        source.heads.index(own) if several and own in source.heads else _head(source, name)
        for own in heads
    ]


def apply_foundation(
    model: nn.Module, path: str | Path, head: str | None = None
) -> FoundationReport:
    """Copy backbone and energy readouts of a trained model into ``model``, in place.

    A model of the same type takes everything. Each head starts from the head of the same name,
    else from ``head``.

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
    assert isinstance(model, Model)
    source = load_foundation(path)
    rows = head_rows(source, model.heads, head)
    if rows != list(range(len(source.heads))):
        source = with_heads(source, list(model.heads), rows)
    config, given = _config(model), _config(source)
    _check_options(path, config, given)
    elements = _element_rows(path, config["atomic_numbers"], given["atomic_numbers"])
    report = FoundationReport(
        source=f"{path} ({given['type']})",
        elements=[chemical_symbols[number] for number in config["atomic_numbers"]],
    )
    _copy_parameters(model, source, elements, report)
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
    for option in MUST_MATCH:
        theirs, ours = _canonical(option, given), _canonical(option, config)
        if theirs != ours:
            differing.append(f"{option} {_shown(theirs)} (here {_shown(ours)})")
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


def _copy_parameters(
    model: nn.Module, source: nn.Module, rows: list[int], report: FoundationReport
) -> None:
    config, given = _config(model), _config(source)
    sizes = BackboneSizes(
        n_known=len(given["atomic_numbers"]),
        rows=rows,
        neighbours=float(config["avg_num_neighbors"]) / float(given["avg_num_neighbors"]),
        divided=_divides_by_neighbours(model),
    )
    same = config["type"] == given["type"]
    with torch.no_grad():
        for name, target in model.named_parameters():
            shared = same or name.partition(".")[0] in _TAKEN
            if not shared or target.numel() == 0:
                continue
            value, note = adapted(name, source, target, sizes)
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
    own, config = getattr(model, "scale_shift", None), _config(model)
    shown = f"scale {_numbers(scale)}, shift {_numbers(shift)} eV"
    if own is not None:
        own.scale.copy_(scale.view_as(own.scale))
        own.shift.copy_(shift.view_as(own.shift))
        config.update(atomic_inter_scale=own.scale.tolist(), atomic_inter_shift=own.shift.tolist())
        report.notes.append(f"energy of the readouts: {shown}")
        return
    if bool((scale == 1.0).all() and (shift == 0.0).all()):
        return
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_last = name.startswith("readouts.") and ".linear_" not in name.replace("_2.", ".")
            if is_last and (name in report.copied or name in report.adapted):
                parameter.view(-1, len(scale)).mul_(scale.to(parameter))
                report.adapted[name] = f"times the scale {_numbers(scale)}"
    report.copied = [name for name in report.copied if name not in report.adapted]
    energies: Tensor = model.get_buffer("atomic_energies_fn.atomic_energies")
    energies.add_(shift.to(energies) if energies.dim() == 1 else shift.to(energies).unsqueeze(-1))
    config["atomic_energies"] = energies.tolist()
    report.notes.append(f"{shown}: into the readouts, and into the atomic energies")
    _scale_repulsion(model, scale, report)


def _scale_repulsion(model: nn.Module, scale: Tensor, report: FoundationReport) -> None:
    """The repulsion is a part of the energy that is scaled."""
    repulsion, config = getattr(model, "pair_repulsion_fn", None), _config(model)
    if repulsion is None:
        return
    given = config["pair_repulsion"]
    if bool((scale == scale[0]).all()) and isinstance(given, Mapping) and "scale" in given:
        repulsion.scale *= float(scale[0])
        config["pair_repulsion"] = {**given, "scale": repulsion.scale}
    else:
        report.notes.append("the pair repulsion keeps its scale, as all heads share it")


def _scale_and_shift(source: nn.Module) -> tuple[Tensor, Tensor]:
    """Of each head, [n_heads]."""
    block = getattr(source, "scale_shift", None)
    if block is None:
        n_heads = len(source.heads)  # type: ignore[arg-type]
        return torch.ones(n_heads), torch.zeros(n_heads)
    return block.scale.detach().reshape(-1), block.shift.detach().reshape(-1)


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.6g}" for value in values.tolist())
