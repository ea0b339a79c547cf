"""Convert a model that mace-torch or mace-scf saved into a model of fpmace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fpmace.annotations import Options
from fpmace.conversion.adapters import merge_adapters
from fpmace.conversion.backbone_config import backbone_config
from fpmace.conversion.coupling_basis import to_own_basis
from fpmace.conversion.fixed_point_config import fixed_point_config
from fpmace.conversion.module_tree import Module
from fpmace.conversion.plain_kernels import plain_kernels
from fpmace.conversion.polar_config import polar_config, polar_notes, polar_unused
from fpmace.conversion.readout_config import scale_options
from fpmace.conversion.safe_archive import Foreign, class_path, read_foreign_archive
from fpmace.conversion.unsupported import check_supported
from fpmace.conversion.weights import WeightsReport, check_constants, copy_weights
from fpmace.errors import ConfigError, ModelFileError
from fpmace.registry import build

Config = Options


@dataclass(frozen=True)
class Conversion:
    """A converted model and how it came about.

    Attributes:
        model: in evaluation mode, in the precision of the file.
        source_class: class of the foreign model, ``module.Name``.
        report: the fate of every entry.
        notes: what a user should know about this model.
    """

    model: nn.Module
    source_class: str
    report: WeightsReport
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> Config:
        """Configuration of the model."""
        config: Config = self.model.config  # type: ignore[assignment]
        return config


def _mace(root: Module) -> Config:
    return {"type": "MACE", **backbone_config(root)}


def _scale_shift_mace(root: Module) -> Config:
    config = backbone_config(root)
    return {"type": "ScaleShiftMACE", **config, **scale_options(root, len(config["heads"]))}


def _fixed_point(root: Module) -> Config:
    return {"type": "FixedPoint", **backbone_config(root), **fixed_point_config(root)}


def _polar(root: Module) -> Config:
    backbone = backbone_config(root)
    config = {**backbone, **polar_config(root, backbone)}
    return {"type": "PolarMACE", **config, **scale_options(root, len(config["heads"]))}


READERS: dict[str, Callable[[Module], Config]] = {
    "MACE": _mace,
    "ScaleShiftMACE": _scale_shift_mace,
    "FixedPointCore": _fixed_point,
    "PolarMACE": _polar,
}
"""How the configuration is read, by the class of the foreign model."""


def convert_file(path: str | Path) -> Conversion:
    """Read a model file of mace-torch or mace-scf and build the same model in fpmace.

    Neither package is needed, and no code from the file is run.

    Raises:
        ModelFileError: if the file cannot be read, the model has something that fpmace does not
            have, or an entry of it is left over.
    """
    try:
        return convert_model(_read_model(path))
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise ModelFileError(f"{path}: is not built as expected ({error})") from error


def convert_model(root: Module) -> Conversion:
    """Build the model that a tree of stand-ins describes; see :func:`convert_file`.

    Raises:
        ModelFileError: see :func:`convert_file`.
    """
    where = root.file
    n_kernels = plain_kernels(root)
    n_adapters = merge_adapters(root)
    check_supported(root)
    config = READERS[root.class_name](root)
    try:
        model: nn.Module = build("model", config, where="configuration of the file")
    except ConfigError as error:
        raise ModelFileError(f"{where}: cannot be built in fpmace ({error})") from error
    state = _selected_radii(root.state(), config["atomic_numbers"])
    check_constants(model, state, where)
    own_state, changes = to_own_basis(state, where)
    unused = polar_unused(root, own_state) if root.class_name == "PolarMACE" else []
    acting = dict(own_state)
    for entry in unused:
        del acting[entry.name]
    report = copy_weights(model, acting, where, changes)
    report.entries += unused
    report.require_complete(where)
    model.to(dtype=_dtype(state, where)).eval()
    notes = [f"{n_adapters} LoRA adapters were merged"] if n_adapters else []
    if n_kernels:
        notes.append(f"{n_kernels} accelerated kernels were put back into e3nn's form")
    return Conversion(model, root.class_path, report, notes + _notes(root, config))


def _selected_radii(state: dict[str, Tensor], numbers: list[int]) -> dict[str, Tensor]:
    """Foreign models hold the radii of all elements, fpmace those of the model's."""
    return {
        name: value[numbers] if name.endswith(".covalent_radii") else value
        for name, value in state.items()
    }


def _read_model(path: str | Path) -> Module:
    content = read_foreign_archive(path)
    if not isinstance(content, Foreign):
        raise ModelFileError(
            f"{path}: holds a {type(content).__name__}, not a whole model (a checkpoint or state "
            "dict has no configuration); convert the model file that training saved at its end"
        )
    root = Module(content, "", str(path))
    if root.class_name not in READERS:
        raise ModelFileError(
            f"{path}: holds a {class_path(content)}; only {', '.join(READERS)} can be converted"
        )
    return root


def _dtype(state: dict[str, Tensor], where: str) -> torch.dtype:
    found = {
        value.dtype
        for name, value in state.items()
        if value.is_floating_point() and name.startswith("interactions.")
    }
    if len(found) != 1 or not found <= {torch.float32, torch.float64}:
        raise ModelFileError(
            f"{where}: has weights of type {', '.join(sorted(map(str, found))) or 'none'}; "
            "fpmace has float64 and float32 models"
        )
    return found.pop()


_FEATURES = "electric_potential_descriptor"


def _notes(root: Module, config: Config) -> list[str]:
    notes = []
    if "NonLinear" in str(config["interaction_cls"]) and config["apply_cutoff"]:
        notes.append(
            f"jump at r_max: the energy of this model is not continuous where an atom comes "
            f"within {config['r_max']:g} Angstrom of another (apply_cutoff true with non-linear "
            "interactions); it is kept as it is"
        )
    method = config.get("pbc_handling")
    if method in ("realspace", "mixed_periodic", "molecule_in_box"):
        notes.append(
            f"pbc_handling '{method}': fpmace uses closed forms where the original has "
            "finite differences (open boundaries) or rounded exponents (isolated molecules in a "
            "box); see docs/moving_from_mace_scf.md"
        )
    correction = root.find(
        "electric_potential_descriptor.non_periodic_correction_terms.self_field"
    )
    if correction is not None and correction.value("include_quadrupole_corrections", False):
        notes.append(
            "quadrupole_feature_corrections: was on but without effect in the original; it is "
            "off in the converted model"
        )
    return notes + (polar_notes(root) if root.class_name == "PolarMACE" else [])
