"""MACE models against reference numbers of mace-torch 0.3.14 with e3nn 0.4.4."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fpmace.blocks.coupling import symmetric_coupling, wigner_3j
from fpmace.conversion.weights import copy_weights, reference_name
from fpmace.errors import ModelFileError
from verification.backbone import check_backbone, load_weights, reference_model

DATA = Path(__file__).parent / "data" / "mace_backbone"


@pytest.fixture(scope="module")
def rows():
    return check_backbone(DATA)


@pytest.mark.parametrize("case", ["mace_a", "mace_e"])
def test_every_stored_number_is_reproduced(rows, case):
    mine = [row for row in rows if row.case.startswith(case)]
    assert len(mine) == 45
    assert not [row for row in mine if row.status != "pass"]


def test_errors_are_at_rounding_level(rows):
    assert max(row.max_error for row in rows) < 1e-12


def test_signs_of_3j_tensors_are_those_of_e3nn_0_4_4():
    with np.load(DATA / "wigner_3j.npz") as data:
        for degrees, index, value in zip(
            data["degrees"], data["index"], data["value"], strict=True
        ):
            tensor = wigner_3j(*(int(degree) for degree in degrees))
            assert tensor.reshape(-1)[index] == pytest.approx(value, abs=1e-12), degrees


def _reference_polynomial(data, key, n_components, degree):
    """The reference's coupling tensor, summed over permutations of the factors."""
    indices, values = data[f"{key}/indices"].astype(int), data[f"{key}/values"]
    if len(indices) == degree + 1:
        indices = np.vstack([np.zeros(indices.shape[1], dtype=int), indices])
    shape = (indices[0].max() + 1, *[n_components] * degree, int(data[f"{key}/shape"][-1]))
    total = np.zeros(shape)
    for column, value in zip(indices.T, values, strict=True):
        place = (column[0], *sorted(column[1:-1]), column[-1])
        total[place] += value
    return total


@pytest.mark.parametrize("name", ["cg_basis", "cg_basis_lmax2"])
def test_coupling_tensors_are_those_of_the_reference(name):
    with np.load(DATA / f"{name}.npz") as data:
        for key in sorted({item.split("/")[0] for item in data}):
            max_ell, out_l, degree = int(key[4]), int(key.split("_out")[1][0]), int(key[-1])
            n_components = (max_ell + 1) ** 2
            coupling = symmetric_coupling(max_ell, out_l, degree)
            mine = np.zeros(
                (2 * out_l + 1, *[n_components] * degree, coupling.n_paths), dtype=np.float64
            )
            for t, term in enumerate(coupling.monomials):
                mine[(slice(None), *term)] = coupling.values[:, t]
            reference = _reference_polynomial(data, key, n_components, degree)
            np.testing.assert_allclose(mine, reference, rtol=0.0, atol=1e-13, err_msg=key)


def _load(name):
    config = json.loads((DATA / f"{name}.config.json").read_text())
    with np.load(DATA / f"{name}.state_dict.npz") as data:
        return config, dict(data)


def test_reference_names_go_both_ways():
    config, state = _load("mace_a")
    model = reference_model(config, state, "mace_a")
    written = {reference_name(name): value for name, value in model.state_dict().items()}
    assert all(np.array_equal(written[n].numpy(), state[n]) for n in written)


def test_left_over_and_missing_weights_are_reported():
    config, state = _load("mace_a")
    model = reference_model(config, state, "mace_a")
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    tensors["interactions.0.surprise"] = torch.ones(2)
    del tensors["readouts.0.linear.weight"]
    report = copy_weights(model, tensors, "mace_a")
    assert report.names("not understood") == ["interactions.0.surprise"]
    assert report.names("missing") == ["readouts.0.linear.weight"]
    with pytest.raises(ModelFileError, match=r"mace_a.*surprise.*readouts\.0\.linear\.weight"):
        report.require_complete("mace_a")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("r_max", torch.tensor(6.0), "r_max"),
        ("atomic_numbers", torch.tensor([1, 7, 8]), "atomic_numbers"),
        (
            "readouts.0.linear.weight",
            torch.ones(5),
            r"readouts.*shape \[5\]",
        ),
        ("radial_embedding.bessel_fn.bessel_weights", torch.ones(8), "trained radial functions"),
    ],
)
def test_weights_of_another_model_are_refused(name, value, message):
    config, state = _load("mace_a")
    model = reference_model(config, state, "mace_a")
    tensors = {key: torch.from_numpy(item) for key, item in state.items()}
    with pytest.raises(ModelFileError, match=message):
        load_weights(model, {**tensors, name: value}, "mace_a")
