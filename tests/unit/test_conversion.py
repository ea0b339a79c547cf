"""Models of mace-torch and mace-scf, converted: same energies and forces, nothing left over."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e3nn.o3 import Irreps
from foreign_models import (
    DATA,
    energy_and_forces,
    golden_state,
    put,
    stand_in,
    stored_cases,
    tree,
    u_array,
    unpacked,
)

from fpmace.blocks.linear import Linear
from fpmace.conversion.adapters import merge_adapters
from fpmace.conversion.convert import convert_file, convert_model
from fpmace.conversion.coupling_basis import to_own_basis
from fpmace.conversion.module_tree import Module
from fpmace.conversion.report import report_lines, summary
from fpmace.errors import ModelFileError
from fpmace.models.io import load_model, save_model
from fpmace.registry import normalise
from verification.fixed_point import _check_case, _load

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""eV and eV/Angstrom."""


CUEQUIVARIANCE = ["cueq_original_basis", "cueq_reduced_basis", "cueq_fused_convolution"]
"""Features in memory as ``mul_ir``, as ``ir_mul``, and the same with the convolution for GPUs."""


@pytest.mark.parametrize(
    "name", ["mace_b", "reduced_basis", "single_layer_float32", *CUEQUIVARIANCE]
)
def test_a_mace_model_gives_the_energies_and_forces_of_its_package(
    name: str, tmp_path: Path
) -> None:
    conversion = convert_file(unpacked(name, tmp_path))
    path = tmp_path / "converted.model"
    save_model(path, conversion.model)
    model = load_model(path)
    dtype = next(model.parameters()).dtype
    assert dtype == (torch.float32 if "float32" in name else torch.float64)
    for case in stored_cases(name):
        energy, forces = energy_and_forces(model, case)
        reference = torch.from_numpy(case["forces"])
        assert energy.dtype == dtype
        assert abs(energy.item() - case["energy"].item()) < TOLERANCE[dtype]
        assert (forces - reference).abs().max() < TOLERANCE[dtype]


def test_a_fixed_point_model_gives_the_numbers_of_its_package(tmp_path: Path) -> None:
    conversion = convert_file(unpacked("fp01", tmp_path))
    given, _ = golden_state("fp01")
    for key, value in normalise("model", conversion.config).items():
        if key in given:
            expected = given[key]
            part = isinstance(value, dict) and not isinstance(expected, dict)
            assert (value["type"] if part else value) == pytest.approx(expected) or key.endswith(
                "config"
            )
    stored = _load(DATA / "fixed_point" / "fp01.outputs.npz")
    single = {
        k: v for k, v in stored.items() if k.startswith(("g0/direct/", "g0/constant_charge/"))
    }
    inputs = _load(DATA / "fixed_point" / "fp01.inputs.npz")
    rows = _check_case("fp01", conversion.model, inputs, single)
    assert len(rows) > 25
    assert not [row for row in rows if row.status != "pass"]


def test_every_entry_is_accounted_for(tmp_path: Path) -> None:
    root = tree("fp01", tmp_path)
    report = convert_model(root).report
    assert [entry.name for entry in report.entries] == list(root.state())
    assert report.count("not understood") == report.count("missing") == 0
    assert report.count("taken") + report.count("renamed") == 43
    assert all(entry.note for entry in report.entries if entry.fate == "constant")
    text = "\n".join(report_lines(report))
    assert "is now backbone...." in text
    assert "marks which outputs have a path" in text
    assert any(line.startswith("taken: ") for line in summary(report))


def test_weights_of_a_reduced_basis_are_re_expressed(tmp_path: Path) -> None:
    report = convert_file(unpacked("reduced_basis", tmp_path)).report
    changed = [entry for entry in report.entries if entry.fate == "re-expressed"]
    assert len(changed) == 3
    assert changed[0].note == "5 polynomials as 11 of fpmace"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("interactions.0.extra", torch.ones(2)),
        ("products.1.linear.bias", torch.ones(2)),
        ("new_parameter", torch.ones(3)),
    ],
)
def test_an_entry_that_is_left_over_is_refused(
    place: str, value: torch.Tensor, tmp_path: Path
) -> None:
    root = tree("mace_b", tmp_path)
    put(root.foreign, place, value)
    with pytest.raises(ModelFileError, match=rf"entries not understood: {place};"):
        convert_model(root)


def test_a_parameter_without_a_value_is_refused(tmp_path: Path) -> None:
    root = tree("mace_b", tmp_path)
    del root.child("readouts.0.linear").attributes["_parameters"]["weight"]
    with pytest.raises(ModelFileError, match=r"without a value: readouts\.0\.linear\.weight"):
        convert_model(root)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    root = tree("mace_b", tmp_path)
    root.child("readouts.0.linear").tensors()["weight"][0] = float("nan")
    with pytest.raises(ModelFileError, match="not finite"):
        convert_model(root)


FEATURES = [
    ("pair_repulsion_fn", "mace.modules.radial.OtherRepulsion", "OtherRepulsion"),
    ("radial_embedding.distance_transform", "mace.modules.radial.OtherTransform", "OtherTr"),
    ("radial_embedding.bessel_fn", "mace.modules.radial.OtherBasis", "OtherBasis"),
    ("interactions.1", "mace.modules.blocks.RealAgnosticAttResidualInteractionBlock", "Att"),
    ("products.0.symmetric_contractions", "cuequivariance_torch.ops.SC", "cuequivariance_torch"),
    ("readouts.0.linear", "mace.modules.lora.LoRAConv", "LoRA"),
    ("joint_embedding", "mace.modules.embeddings.OtherEmbedding", "OtherEmbedding"),
    ("something", "user.code.Block", "user.code.Block"),
]


@pytest.mark.parametrize(("place", "path", "text"), FEATURES)
def test_an_unknown_block_is_named(place: str, path: str, text: str, tmp_path: Path) -> None:
    root = tree("mace_b", tmp_path)
    put(root.foreign, place, stand_in(path))
    with pytest.raises(ModelFileError, match="not supported") as caught:
        convert_model(root)
    assert f"mace_b.model: '{place}'" in str(caught.value)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def change_coefficient(root: Module, place: str) -> None:
    """Double the first coefficient of a kernel."""
    polynomial = root.child(f"{place}.f").foreign.args[0]
    path = polynomial.attributes["operations"][0][1].attributes["paths"][0]
    array = path.attributes["coefficients"]
    *head, raw = array.state
    array.state = (*head, (2.0 * np.frombuffer(raw, "<f8")).tobytes())


@pytest.mark.parametrize(
    "place", ["interactions.0.linear_up", "interactions.0.skip_tp", "interactions.1.conv_tp"]
)
def test_a_kernel_of_another_norm_is_refused(place: str, tmp_path: Path) -> None:
    root = tree("cueq_reduced_basis", tmp_path)
    change_coefficient(root, place)
    with pytest.raises(ModelFileError, match=r"order or norm.*mace_cueq_to_e3nn") as caught:
        convert_model(root)
    assert f"'{place}': not supported" in str(caught.value)


def test_the_polynomials_of_a_kernel_count(tmp_path: Path) -> None:
    root, changed = (tree("cueq_reduced_basis", tmp_path) for _ in range(2))
    change_coefficient(changed, "products.1.symmetric_contractions")
    place = "backbone.products.1.symmetric_contractions.contractions.0.weights.0"
    one, two = (convert_model(item).model.get_parameter(place) for item in (root, changed))
    torch.testing.assert_close(two, 2.0 * one)


@pytest.mark.parametrize(("mode", "fits"), [("uvu", True), ("uvw", False)])
def test_convolutions_of_openequivariance(mode: str, fits: bool, tmp_path: Path) -> None:
    plain, root = (tree("mace_b", tmp_path) for _ in range(2))
    kernel = stand_in("openequivariance._torch.TensorProductConv.TensorProductConv")
    problem = stand_in("openequivariance.core.e3nn_lite.TPProblem")
    problem.state["instructions_raw"] = [(0, 0, 0, mode, True)]
    kernel.state = {"problem": problem, "deterministic": False}
    put(root.foreign, "interactions.0.conv_tp", kernel)
    if not fits:
        with pytest.raises(ModelFileError, match="convert_oeq_e3nn"):
            convert_model(root)
        return
    for name, value in convert_model(root).model.state_dict().items():
        assert torch.equal(value, convert_model(plain).model.state_dict()[name]), name


OPTIONS = [
    ("heads", ["a", "b"], "the model has 2"),
    ("apply_cutoff", False, "apply_cutoff"),
    ("use_so3", True, "use_so3"),
    ("use_agnostic_product", True, "use_agnostic_product"),
    ("use_last_readout_only", True, "use_last_readout_only"),
    ("pair_repulsion", True, "pair_repulsion"),
    ("brand_new_option", 3, "'brand_new_option' = 3"),
]


@pytest.mark.parametrize(("name", "value", "text"), OPTIONS)
def test_an_unknown_option_is_named(name: str, value: Any, text: str, tmp_path: Path) -> None:
    root = tree("mace_b", tmp_path)
    root.attributes[name] = value
    with pytest.raises(ModelFileError, match="not supported") as caught:
        convert_model(root)
    assert text in str(caught.value)


def test_a_skip_that_is_left_out_is_refused(tmp_path: Path) -> None:
    root = tree("mace_b", tmp_path)
    root.child("products.0").attributes["use_sc"] = False
    with pytest.raises(ModelFileError, match="leaves out the skip"):
        convert_model(root)


def test_a_tree_of_another_build_is_one_clear_line(tmp_path: Path) -> None:
    path = unpacked("mace_b", tmp_path)
    content = path.read_bytes()
    broken = tmp_path / "broken.model"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            record = old.read(name)
            new.writestr(name, record.replace(b"irreps_out", b"irreps_0ut"))
    assert broken.read_bytes() != content
    with pytest.raises(ModelFileError, match="is it a model of another kind"):
        convert_file(broken)


def test_trained_radial_functions_are_kept(tmp_path: Path) -> None:
    root = tree("mace_b", tmp_path)
    roots = root.child("radial_embedding.bessel_fn").tensors()["bessel_weights"]
    roots[2] += 0.01
    model = convert_model(root).model
    assert model.config["radial_type"] == {"type": "bessel", "trainable": True}
    torch.testing.assert_close(model.backbone.radial_embedding.basis.bessel_weights, roots)


def test_other_activations_are_refused(tmp_path: Path) -> None:
    root = tree("mace_b", tmp_path)
    act = root.child("readouts.1.non_linearity.acts.0")
    act.attributes["f"] = stand_in("torch.nn.functional.gelu")
    with pytest.raises(ModelFileError, match="'gelu' is not supported"):
        convert_model(root)


def test_polynomials_that_fpmace_lacks_are_refused() -> None:
    array = u_array(1, 0, 2)
    array[0, 1, 0] = 0.5
    name = "products.0.symmetric_contractions.contractions.0."
    state = {
        f"{name}weights_max": torch.ones(1, array.shape[-1], 1, dtype=torch.float64),
        f"{name}weights.0": torch.zeros(1, 0, 1, dtype=torch.float64),
        f"{name}U_matrix_2": array,
    }
    with pytest.raises(ModelFileError, match="polynomials"):
        to_own_basis(state, "file")


def test_only_models_that_are_known_are_converted(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.pt"
    torch.save({"model": {"weight": torch.ones(1)}}, checkpoint)
    with pytest.raises(ModelFileError, match="holds a dict, not a whole model"):
        convert_file(checkpoint)
    other = tmp_path / "other.model"
    torch.save(torch.nn.Linear(1, 1), other)
    with pytest.raises(ModelFileError, match=r"torch\.nn\.modules\.linear\.Linear; only MACE"):
        convert_file(other)


def rebuilt(name: str, folder: Path, config: dict[str, Any], state: dict[str, Any]) -> Module:
    """A stored fixed-point model as the tree of its package, grown from that of fp01.

    Blocks that fp01 does not have are given the classes that the configuration names.
    """
    root = tree("fp01", folder)
    for place in ("field_dependent_charges_map", "local_electron_energy", "lr_source_maps"):
        root.attributes["_modules"][place] = stand_in("torch.nn.modules.container.ModuleList")
    for key, value in state.items():
        put(root.foreign, key, value)
    for index, key in enumerate(("interaction_cls_first", "interaction_cls")):
        put_class(root, f"interactions.{index}", f"mace.modules.blocks.{config[key]}")
    for place, key in (
        ("field_dependent_charges_map", "fixedpoint_update_config"),
        ("local_electron_energy", "field_readout_config"),
    ):
        put_class(root, place, f"mace_scf.blocks.{config[key]['type']}")
        _name_parts(root.child(place), config[key])
    root.attributes["add_local_electron_energy"] = config["add_local_electron_energy"]
    for block in ("electric_potential_descriptor", "coulomb_energy"):
        root.child(block).attributes["pbc_handling"] = config["pbc_handling"]
    return Module(root.foreign, "", name)


def put_class(root: Module, place: str, path: str) -> None:
    module = root.child(place).foreign
    parent, _, last = place.rpartition(".")
    owner = root.child(parent).foreign if parent else root.foreign
    copy = type("Foreign", (type(module).__base__,), {"path": path})()
    copy.state = module.state
    owner.state["_modules"][last] = copy


def _name_parts(block: Module, config: dict[str, Any]) -> None:
    scf = "mace_scf.blocks"
    if block.find("potential_embedding"):
        put_class(block, "potential_embedding", f"{scf}.{config['potential_embedding_cls']}")
    nonlinearity = config.get("nonlinearity_cls", "MLPNonLinearity")
    for part in ("nonlinearity", "activation"):
        if block.find(part):
            put_class(block, part, f"{scf}.{nonlinearity}")
            block.child(part).child("mlp").attributes["hs"] = [8, 64, 64, 8]
    if nonlinearity == "NoNonLinearity":
        block.attributes["_modules"]["nonlinearity"] = stand_in(f"{scf}.NoNonLinearity")
    if block.find("interaction") is None:
        return
    put_class(
        block, "interaction", "mace.modules.blocks.RealAgnosticDensityResidualInteractionBlock"
    )
    put_class(block, "central_atom_mixer", f"{scf}.AdditiveMixer")
    block.child("interaction.conv_tp_weights").attributes["hs"] = [8, 64, 64, 64, 0]
    product = block.child("product")
    product.attributes["use_sc"] = True
    product.child("symmetric_contractions").attributes["irreps_in"] = "8x0e+8x1o+8x2e"
    correlation = config.get("correlation", 2)
    for out_l in range(2):
        contraction = product.child(f"symmetric_contractions.contractions.{out_l}")
        contraction.attributes["correlation"] = correlation
        for degree in range(1, correlation + 1):
            put(contraction.foreign, f"U_matrix_{degree}", u_array(2, out_l, degree))


@pytest.mark.parametrize("name", ["fp05", "fp06"])
def test_many_body_and_gated_blocks_are_read(name: str, tmp_path: Path) -> None:
    """The places of weights are those of the reference; that of options is assumed."""
    config, state = golden_state(name)
    conversion = convert_model(rebuilt(name, tmp_path, config, state))
    own = conversion.config
    assert own["fixedpoint_update_config"]["type"] == config["fixedpoint_update_config"]["type"]
    assert own["field_readout_config"]["type"] == config["field_readout_config"]["type"]
    assert own["field_readout_config"]["max_ell"] == 2
    assert own["use_linear_local_charges"] == config["use_linear_local_charges"]
    assert own["pbc_handling"] == config["pbc_handling"]
    json.dumps(own)
    values = conversion.model.state_dict()
    for entry in conversion.report.entries:
        if entry.target:
            given = state[entry.name].reshape(values[entry.target].shape)
            assert torch.equal(values[entry.target], given)


@pytest.mark.parametrize(
    ("place", "cls"),
    [
        ("field_dependent_charges_map.potential_embedding", "TanhPotentialEmbedding"),
        ("field_dependent_charges_map.nonlinearity", "SkipMLPNonLinearity"),
    ],
)
def test_blocks_of_another_form_are_refused(place: str, cls: str, tmp_path: Path) -> None:
    root = tree("fp01", tmp_path)
    put_class(root, place, f"mace_scf.electrostatics.field_blocks.{cls}")
    with pytest.raises(ModelFileError, match=f"the block {cls} cannot be converted"):
        convert_model(root)


def test_a_block_that_only_reshapes_has_no_weights(tmp_path: Path) -> None:
    root = tree("fp01", tmp_path)
    place = "field_dependent_charges_map.unreshape"
    put(root.foreign, place, stand_in("mace_scf.modules.irreps_tools.undo_reshape"))
    assert convert_model(root).config["type"] == "FixedPoint"


def _linear(irreps_in: str, irreps_out: str) -> tuple[Linear, Any]:
    """A linear map of fpmace and the stand-in of the same one."""
    made = Linear(Irreps(irreps_in), Irreps(irreps_out))
    irreps = {"irreps_in": irreps_in, "irreps_out": irreps_out}
    return made, stand_in("e3nn.o3._linear.Linear", weight=made.weight.detach(), **irreps)


def test_adapters_of_equivariant_maps_are_merged() -> None:
    torch.manual_seed(0)
    ends = {"irreps_in": "3x0e+2x1o", "irreps_out": "4x0e+5x1o"}
    base, given = _linear(**ends)
    first, a = _linear("3x0e+2x1o", "2x0e+2x1o")
    second, b = _linear("2x0e+2x1o", "4x0e+5x1o")
    adapter = stand_in(
        "mace.modules.lora.LoRAO3Linear",
        base=given,
        lora_A=a,
        lora_B=b,
        scaling=1.5,
        lora_irreps="2x0e+2x1o",
        **ends,
    )
    root = Module(stand_in("torch.nn.Sequential", map=adapter), "", "file")
    assert merge_adapters(root) == 1
    merged = Linear(base.irreps_in, base.irreps_out)
    x = torch.randn(3, 9, dtype=torch.float64)
    with torch.no_grad():
        merged.weight.copy_(root.child("map").tensors()["weight"])
        torch.testing.assert_close(merged(x), base(x) + 1.5 * second(first(x)))


def test_adapters_of_networks_are_merged() -> None:
    w, a, b = (torch.randn(size, dtype=torch.float64) for size in ((4, 3), (4, 2), (2, 3)))
    layer = stand_in("e3nn.nn._fc._Layer", weight=w)
    adapters = stand_in(
        "torch.nn.Sequential",
        layer=stand_in(
            "mace.modules.lora.LoRAFCLayer", base=layer, lora_A=a, lora_B=b, scaling=2.0
        ),
        dense=stand_in(
            "mace.modules.lora.LoRADenseLinear",
            base=stand_in("torch.nn.modules.linear.Linear", weight=w.T),
            lora_A=stand_in("torch.nn.modules.linear.Linear", weight=a.T),
            lora_B=stand_in("torch.nn.modules.linear.Linear", weight=b.T),
            scaling=2.0,
        ),
    )
    root = Module(adapters, "", "file")
    assert merge_adapters(root) == 2
    torch.testing.assert_close(root.child("layer").tensors()["weight"], w + 2.0 * a @ b)
    torch.testing.assert_close(root.child("dense").tensors()["weight"], (w + 2.0 * a @ b).T)
