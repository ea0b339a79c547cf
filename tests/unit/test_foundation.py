"""Training that starts from a trained backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import energy_and_forces, stored_cases, unpacked
from small_models import SMALL
from torch import nn

from fpmace.conversion.convert import convert_file
from fpmace.conversion.foundation import (
    MUST_MATCH,
    apply_foundation,
    foundation_atomic_energies,
)
from fpmace.errors import ConfigError
from fpmace.models.io import load_model, save_model
from fpmace.observables.predict import predict
from fpmace.registry import build
from fpmace.scf.options import ScfOptions
from fpmace.testing.systems import structure_batch

FIELD_BLOCKS = ("lr_source_maps", "field_dependent_charges_map", "local_electron_energy")


def new_model(source: nn.Module, name: str, numbers: list[int], **options: Any) -> nn.Module:
    """A model with the backbone of ``source``, other elements and its own random weights."""
    given: dict[str, Any] = source.config  # type: ignore[assignment]
    energies = dict(zip(given["atomic_numbers"], given["atomic_energies"], strict=True))
    config = {key: given[key] for key in (*MUST_MATCH, "avg_num_neighbors")}
    config |= {
        "type": name,
        "atomic_numbers": numbers,
        "atomic_energies": [energies[number] for number in numbers],
        **options,
    }
    torch.manual_seed(5)
    model: nn.Module = build("model", config)
    return model


def without_field(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(FIELD_BLOCKS):
                parameter.zero_()
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("foundation")
    names = ("mace_b", "reduced_basis", "single_layer_float32")
    return {name: unpacked(name, folder) for name in names}


@pytest.mark.parametrize(
    ("numbers", "neighbours"), [([1, 6, 8], None), ([1, 8], 3.7), ([6], None)]
)
def test_a_fixed_point_model_without_field_has_the_energy_of_the_foundation(
    files: dict[str, Path], numbers: list[int], neighbours: float | None
) -> None:
    """ScaleShiftMACE with vectors, density-normalised blocks and a reduced product basis."""
    source = convert_file(files["reduced_basis"]).model
    changes = {} if neighbours is None else {"avg_num_neighbors": neighbours}
    model = new_model(source, "FixedPoint", numbers, **changes)
    report = apply_foundation(model, files["reduced_basis"])
    assert not [name for name in report.new if name.startswith("readouts")]
    without_field(model)
    for case in stored_cases("reduced_basis"):
        case["numbers"] = torch.tensor(numbers).numpy()[case["numbers"] % len(numbers)]
        batch = structure_batch([case], float(source.r_max))
        mode = build("training_mode", "scf", scf=ScfOptions())
        own = predict(model, batch, mode=mode, outputs=("forces",))
        energy, forces = energy_and_forces(source, case)
        assert abs(own.energy.item() - energy.item()) < 1e-10
        assert own.forces is not None
        assert (own.forces - forces).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["MACE", "ScaleShiftMACE"])
@pytest.mark.parametrize("source_name", ["mace_b", "reduced_basis"])
def test_a_mace_model_starts_at_the_energy_of_the_foundation(
    files: dict[str, Path], name: str, source_name: str, tmp_path: Path
) -> None:
    source = convert_file(files[source_name]).model
    model = new_model(source, name, [1, 6, 8], avg_num_neighbors=4.4)
    apply_foundation(model, files[source_name])
    path = tmp_path / "model"
    save_model(path, model)
    case = stored_cases(source_name)[0]
    energy, forces = energy_and_forces(load_model(path), case)
    assert abs(energy.item() - case["energy"].item()) < 1e-10
    assert abs(forces.detach().numpy() - case["forces"]).max() < 1e-10


def test_a_fixed_point_foundation_serves_mace_and_fixed_point(
    files: dict[str, Path], tmp_path: Path
) -> None:
    source = new_model(convert_file(files["reduced_basis"]).model, "FixedPoint", [1, 6, 8])
    path = tmp_path / "foundation.model"
    save_model(path, source)
    report = apply_foundation(new_model(source, "FixedPoint", [1, 8]), path)
    assert all(name.startswith(("lr_", "layer_", "field_", "local_")) for name in report.new)
    mace = new_model(source, "MACE", [1, 8])
    report = apply_foundation(mace, path)
    assert not report.new
    assert any(note.endswith("scalars only") for note in report.adapted.values())
    assert "elements H, O" in str(report)


def test_new_weights_are_left_at_their_initial_values(files: dict[str, Path]) -> None:
    source = convert_file(files["reduced_basis"]).model
    model = new_model(source, "FixedPoint", [1, 6, 8])
    before = {name: value.clone() for name, value in model.named_parameters()}
    report = apply_foundation(model, files["reduced_basis"])
    after = dict(model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in report.new)
    assert not any(torch.equal(before[name], after[name]) for name in report.copied)
    last = "backbone.products.1.linear.weight"
    assert report.adapted[last] == "the part for vectors is new"
    assert torch.equal(before[last][9:], after[last][9:])


def test_precision_of_the_new_model_is_kept(files: dict[str, Path]) -> None:
    source = convert_file(files["single_layer_float32"]).model
    model = new_model(source, "MACE", [1, 6, 8])
    apply_foundation(model, files["single_layer_float32"])
    assert {item.dtype for item in model.parameters()} == {torch.float64}


def test_other_options_are_named_all_at_once(files: dict[str, Path]) -> None:
    source = convert_file(files["reduced_basis"]).model
    model = new_model(source, "FixedPoint", [1, 6, 8], r_max=5.0, num_bessel=8, correlation=2)
    with pytest.raises(ConfigError) as caught:
        apply_foundation(model, files["reduced_basis"])
    text = str(caught.value)
    assert text.startswith("foundation_model: ")
    assert "r_max 4.3 (here 5.0)" in text
    assert "num_bessel 6 (here 8)" in text
    assert "correlation [3, 2] (here [2, 2])" in text
    assert "\n" not in text


def test_unknown_elements_are_named(files: dict[str, Path]) -> None:
    source = convert_file(files["mace_b"]).model
    model = new_model(source, "MACE", [1, 8])
    model.config["atomic_numbers"] = [1, 17]  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"does not know the elements Cl .* H, C, O"):
        apply_foundation(model, files["mace_b"])


def test_atomic_energies_of_a_foundation(files: dict[str, Path]) -> None:
    energies = foundation_atomic_energies(files["mace_b"])
    assert energies == pytest.approx({1: 0.189053, 6: -0.522748, 8: -0.413064})


NONLINEAR = {
    "interaction_cls_first": "RealAgnosticResidualNonLinearInteractionBlock",
    "interaction_cls": "RealAgnosticResidualNonLinearInteractionBlock",
    "apply_cutoff": False,
    "readout_bias": True,
}
PARTS: dict[str, dict[str, Any]] = {
    "repulsion": {"pair_repulsion": {"type": "ZBL", "trainable": True}},
    "transform": {"distance_transform": "Agnesi", "use_last_readout_only": True},
    "lean product": {"use_agnostic_product": True, "use_reduced_cg": True},
    "non-linear": NONLINEAR,
}


@pytest.mark.parametrize("name", ["ScaleShiftMACE", "MACE", "FixedPoint"])
@pytest.mark.parametrize("parts", PARTS)
def test_parts_of_published_models_start_with_some_elements(
    parts: str, name: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    given = {**SMALL, "atomic_numbers": [1, 6, 8], "atomic_energies": [-1.0, -2.0, -3.0]}
    given |= {"type": "ScaleShiftMACE", "atomic_inter_scale": 1.7, "atomic_inter_shift": 0.2}
    source = build("model", {**given, **PARTS[parts]})
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_model(tmp_path / "source.model", source)
    model = new_model(source, name, [1, 8])
    report = apply_foundation(model, tmp_path / "source.model")
    assert bool(report.new) == (name == "FixedPoint")
    assert "backbone.node_embedding.linear.weight" in report.adapted
    save_model(tmp_path / "target.model", without_field(model))
    model = load_model(tmp_path / "target.model")
    case = {**stored_cases("mace_b")[0]}
    case["numbers"] = torch.tensor([1, 8]).numpy()[case["numbers"] % 2]
    batch = structure_batch([case], 3.0)
    mode = build("training_mode", "scf", scf=ScfOptions()) if name == "FixedPoint" else None
    own = predict(model, batch, mode=mode, outputs=("forces",))
    theirs = predict(source, batch, outputs=("forces",))
    torch.testing.assert_close(own.energy, theirs.energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(own.forces, theirs.forces, rtol=0, atol=1e-10)
