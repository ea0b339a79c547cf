"""Every combination of blocks: symmetries, forces, and what the blocks say of themselves."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from block_factors import (
    EMBEDDINGS,
    INTERACTIONS,
    LOCAL,
    MIXERS,
    NONLINEARITIES,
    PERCEPTRON,
    READOUTS,
    RULES,
)

from fpmace.registry import build
from fpmace.scf.options import ScfOptions
from fpmace.testing.block_contract import (
    TINY,
    affine_error,
    check_symmetry_and_forces,
    coupling_error,
    gradient_error,
    molecule,
    tiny_model,
)
from fpmace.testing.covering import every_pair
from fpmace.testing.systems import atoms_batch, random_model


def name(value: Any) -> str:
    return value["type"] if isinstance(value, dict) else str(value)


@pytest.mark.parametrize("readout", READOUTS, ids=name)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=name)
@pytest.mark.parametrize("embedding", EMBEDDINGS, ids=name)
@pytest.mark.parametrize("rule", RULES, ids=name)
def test_rule_nonlinearity_embedding_readout(
    rule: dict[str, Any],
    embedding: dict[str, Any],
    nonlinearity: dict[str, Any],
    readout: dict[str, Any],
) -> None:
    update = {**rule, "potential_embedding_cls": embedding, "nonlinearity_cls": nonlinearity}
    model = tiny_model(fixedpoint_update_config=update, field_readout_config=readout)
    check_symmetry_and_forces(model)


GRADIENTS = every_pair(
    {
        "rule": RULES,
        "embedding": EMBEDDINGS,
        "nonlinearity": NONLINEARITIES,
        "readout": READOUTS,
        "local": LOCAL,
        "mode": ("direct", "unroll_scf", "implicit", "linearize_solve"),
    }
)


@pytest.mark.parametrize("row", GRADIENTS, ids=range(len(GRADIENTS)))
def test_parameter_derivatives_of_energy_and_forces(row: dict[str, Any]) -> None:
    update = {
        **row["rule"],
        "potential_embedding_cls": row["embedding"],
        "nonlinearity_cls": row["nonlinearity"],
    }
    model = tiny_model(
        fixedpoint_update_config=update,
        field_readout_config=row["readout"],
        local_density_config=row["local"],
        use_linear_local_charges=False,
    )
    scf: dict[str, Any] = {"scf_tolerance": 1e-12, "num_scf_steps": 300}
    if row["mode"] == "unroll_scf":
        scf |= {"num_scf_steps": 4, "mixing_parameter": 0.4, "on_failure": "ignore"}
    options = ScfOptions(constant_charge=model.update_rule.is_affine, **scf)
    mode = build("training_mode", row["mode"], scf=options)
    batch = atoms_batch([molecule()], model.r_max)
    assert gradient_error(model, batch, mode) < 1e-6


PARTS = every_pair(
    {
        "interaction_cls": INTERACTIONS,
        "field_mixer_cls": MIXERS,
        "use_sc": (True, False),
        "correlation": (1, 2, 3),
        "max_ell": (0, 1, None),
        "nonlinearity_cls": NONLINEARITIES,
        "potential_embedding_cls": EMBEDDINGS,
        "hidden_irreps": ("2x0e+2x1o", "2x0e+2x1o+2x2e"),
        "local": LOCAL,
        "layers": (1, 2),
    }
)
CHAIN_OPTIONS = (
    "interaction_cls",
    "field_mixer_cls",
    "use_sc",
    "correlation",
    "max_ell",
    "nonlinearity_cls",
)


@pytest.mark.parametrize("row", PARTS, ids=range(len(PARTS)))
@pytest.mark.parametrize("where", ["update", "readout"])
def test_parts_of_the_many_body_blocks(row: dict[str, Any], where: str) -> None:
    chain = {**{key: row[key] for key in CHAIN_OPTIONS}, "radial_sizes": PERCEPTRON}
    embedding = {"potential_embedding_cls": row["potential_embedding_cls"]}
    blocks = {
        "update": ({**RULES[1], **chain, **embedding}, READOUTS[1]),
        "readout": ({**RULES[0], **embedding}, {"type": "ManyBodyChargesFieldReadout", **chain}),
    }
    update, readout = blocks[where]
    model = tiny_model(
        fixedpoint_update_config=update,
        field_readout_config=readout,
        local_density_config=row["local"],
        hidden_irreps=row["hidden_irreps"],
        use_linear_local_charges=False,
        num_interactions=row["layers"],
        max_ell=2,
    )
    check_symmetry_and_forces(model)


def one_body(embedding: dict[str, Any], nonlinearity: dict[str, Any]) -> dict[str, Any]:
    return {
        **RULES[0],
        "potential_embedding_cls": embedding,
        "nonlinearity_cls": nonlinearity,
    }


def update_rules() -> list[dict[str, Any]]:
    """Every combination of the parts of the update rules."""
    first = [one_body(*parts) for parts in product(EMBEDDINGS, NONLINEARITIES)]
    chains = product(EMBEDDINGS, NONLINEARITIES, MIXERS, (True, False), (1, 2))
    names = (
        "potential_embedding_cls",
        "nonlinearity_cls",
        "field_mixer_cls",
        "use_sc",
        "correlation",
    )
    return first + [{**RULES[1], **dict(zip(names, parts, strict=True))} for parts in chains]


def test_rules_are_affine_and_one_body_exactly_where_they_say_so() -> None:
    affine = []
    for config in update_rules():
        model = random_model(**TINY, fixedpoint_update_config=config)
        rule = model.update_rule
        error = affine_error(model)
        assert (error < 1e-12) == rule.is_affine, (config, error)
        assert (coupling_error(model) == 0.0) == rule.is_one_body, config
        affine.append(rule.is_affine)
    assert 0 < sum(affine) < len(affine)


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_built_in_interactions_are_linear(interaction: str) -> None:
    config = {**RULES[1], "interaction_cls": interaction}
    model = random_model(**TINY, fixedpoint_update_config=config)
    assert model.update_rule.is_affine
    assert affine_error(model) < 1e-12
