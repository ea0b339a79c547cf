"""Options and combinations of blocks that make no sense are refused, with place and reason."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from fpmace.config.load import resolve
from fpmace.errors import ConfigError
from fpmace.models.fixed_point_core import FixedPointCore
from fpmace.parts import import_builtin_parts
from fpmace.testing.block_contract import TINY
from fpmace.testing.systems import random_model
from fpmace.training.run import run_training

import_builtin_parts()

ONE_BODY = "OneBodyVariableUpdate"
MANY_BODY = {"type": "ManyBodyUpdate", "radial_sizes": [4]}
QUADRATIC = "StrictQuadraticFieldEnergyReadout"
EMPTY = {"type": "MLPNonLinearity", "hidden_sizes": []}


def build(**options: Any) -> FixedPointCore:
    return random_model(**{**TINY, **options})


def update(**options: Any) -> dict[str, Any]:
    return {"fixedpoint_update_config": options}


def readout(name: str, **options: Any) -> dict[str, Any]:
    return {"field_readout_config": {"type": name, **options}}


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        update(type=ONE_BODY, nonlinearity_cls=EMPTY),
        "fixedpoint_update_config.nonlinearity_cls.hidden_sizes: expects one or more layer "
        "widths, got []; without hidden layers it would be linear, which NoNonLinearity is for",
    ),
    (
        update(
            type=ONE_BODY,
            nonlinearity_cls={"type": "SkipMLPNonLinearity", "hidden_sizes": [8, 0]},
        ),
        "fixedpoint_update_config.nonlinearity_cls.hidden_sizes: SkipMLPNonLinearity expects "
        "list of whole numbers at least 1, got [8, 0]",
    ),
    (
        update(
            type=ONE_BODY,
            potential_embedding_cls={"type": "TanhPotentialEmbedding", "saturation": 0.0},
        ),
        "fixedpoint_update_config.potential_embedding_cls.saturation: TanhPotentialEmbedding "
        "expects number above 0, got 0.0",
    ),
    (
        update(**{**MANY_BODY, "correlation": 0}),
        "fixedpoint_update_config.correlation: ManyBodyUpdate expects whole number at least "
        "1, got 0",
    ),
    (
        update(**{**MANY_BODY, "max_ell": 2}),
        "fixedpoint_update_config.max_ell: expected 0 to 1, the max_ell of the model, got 2; "
        "lower it or raise that of the model",
    ),
    (
        update(**{**MANY_BODY, "radial_sizes": []}),
        "fixedpoint_update_config.radial_sizes: ManyBodyUpdate expects non-empty list of whole "
        "numbers at least 1, got []",
    ),
    (
        update(**{**MANY_BODY, "nonlinearity_cls": "NoSuchThing"}),
        "fixedpoint_update_config.nonlinearity_cls.type: no nonlinearity named 'NoSuchThing'",
    ),
    (
        readout(QUADRATIC, n_channels=0),
        "field_readout_config.n_channels: StrictQuadraticFieldEnergyReadout expects whole number "
        "at least 1, got 0",
    ),
    (
        readout(QUADRATIC, feature_scale=0.0),
        "field_readout_config.feature_scale: 0 would make the energy vanish; use "
        "NullFieldReadout for that",
    ),
    (
        readout("OneBodyMLPFieldReadout", hidden_sizes=[]),
        "field_readout_config.hidden_sizes: OneBodyMLPFieldReadout expects non-empty list of "
        "whole numbers at least 1, got []",
    ),
    (
        readout("NullFieldReadout", n_channels=4),
        "field_readout_config.n_channels: NullFieldReadout has no option 'n_channels'",
    ),
    (
        readout("ManyBodyChargesReadout", correlation=-1),
        "field_readout_config.correlation: ManyBodyChargesReadout expects whole number at least "
        "1, got -1",
    ),
    (
        readout("ManyBodyChargesFieldReadout", max_ell=3),
        "field_readout_config.max_ell: expected 0 to 1, the max_ell of the model, got 3",
    ),
    (
        {"use_linear_local_charges": True, "local_density_config": "GatedLocalDensity"},
        "use_linear_local_charges: true asks for ScaledLinearLocalDensity, but "
        "local_density_config names GatedLocalDensity; leave one out",
    ),
    (
        {
            "use_linear_local_charges": False,
            "local_density_config": {"type": "GatedLocalDensity", "hidden_irreps": "4x1o"},
        },
        "local_density_config.hidden_irreps: expected scalars and others of parity (-1)^l, as "
        "'16x0e+16x1o', got '4x1o'",
    ),
    (
        {
            "use_linear_local_charges": False,
            "local_density_config": {"type": "GatedLocalDensity", "hidden_irreps": "four"},
        },
        "local_density_config.hidden_irreps: 'four' is not a list of irreps such as '16x0e+16x1o'",
    ),
    (
        {"atomic_multipoles_max_l": 2},
        "fixedpoint_update_config: multipoles of degree 2 have no effect: hidden_irreps "
        "'2x0e+2x1o' have no 2e features; add them or lower atomic_multipoles_max_l",
    ),
    (
        {"field_feature_max_l": 2, "field_feature_norms": None},
        "fixedpoint_update_config.potential_embedding_cls: field features of degree 2 have no "
        "effect: hidden_irreps '2x0e+2x1o' have no 2e features; add them or lower "
        "field_feature_max_l",
    ),
    (
        {"hidden_irreps": "2x0e+3x1o"},
        "hidden_irreps: expected one multiplicity for l = 0, 1, ... with parity (-1)^l, such as "
        "'32x0e+32x1o', got '2x0e+3x1o'",
    ),
    (
        {"field_feature_norms": [1.0, 1.0, 1.0]},
        "field_feature_norms: expects 4 numbers (len(field_feature_widths) * "
        "(field_feature_max_l + 1), order by order), got 3",
    ),
    (
        {"atom_density_scaling": [1.0]},
        "atom_density_scaling: expects 2 values, one per element, got 1",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[text for _, text in REFUSED])
def test_refused_with_place_and_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**options)
    text = str(caught.value).removeprefix("model.")
    assert text.startswith(message)
    assert "\n" not in text


def test_vectors_without_vector_features_are_allowed_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        model = build(hidden_irreps="2x0e")
    assert model.electrostatics.n_density == 4
    texts = [record.message for record in caplog.records]
    assert any("multipoles of degree 1 have no effect" in text for text in texts)
    assert any("field features of degree 1 have no effect" in text for text in texts)


def test_scalars_alone_need_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build(
            hidden_irreps="2x0e",
            atomic_multipoles_max_l=0,
            field_feature_max_l=0,
            field_feature_norms=None,
        )
    assert not caplog.records


def test_no_mixer_without_skip_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build(**update(**MANY_BODY, field_mixer_cls="NoMixer", use_sc=False))
    assert "an atom without neighbours would not feel any field" in caplog.text


@pytest.mark.parametrize(("linear", "warned"), [(True, False), (False, True)])
def test_scaling_that_no_readout_takes_is_reported(
    linear: bool, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build(use_linear_local_charges=linear, atom_density_scaling=[0.5, 2.0])
    assert ("atom_density_scaling has no effect" in caplog.text) == warned


def test_harmonics_of_a_chain_follow_the_model() -> None:
    for max_ell, expected in ((1, 4), (2, 9), (3, 9)):
        model = build(max_ell=max_ell, **update(**MANY_BODY))
        assert model.update_rule.chain.n_edge_attrs == expected


def test_gated_local_density_gives_dipoles_from_vectors() -> None:
    torch.manual_seed(0)
    for hidden, expected in ((None, False), ("4x0e+4x1o", True)):
        model = build(
            use_linear_local_charges=False,
            local_density_config={"type": "GatedLocalDensity", "hidden_irreps": hidden},
        )
        feats = torch.randn(3, 8, dtype=torch.float64)
        density = model.lr_source_maps[0](feats, torch.tensor([0, 1, 1]))
        assert bool(density[:, 1:].abs().max() > 0) == expected


def test_training_refuses_before_it_reads_data(tmp_path: Path) -> None:
    values = {
        "train_file": str(tmp_path / "nowhere.xyz"),
        "work_dir": str(tmp_path),
        "max_ell": 1,
        **update(**{**MANY_BODY, "max_ell": 2}),
    }
    with pytest.raises(ConfigError, match=r"^fixedpoint_update_config\.max_ell: expected 0 to 1"):
        run_training(resolve(values))
