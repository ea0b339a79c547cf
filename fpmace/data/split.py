"""Splitting by trajectory: frames of one trajectory stay together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fpmace.data.keys import ISOLATED_ATOM
from fpmace.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fpmace.data.dataset import StructureDataset

DEFAULT_VALID_FRACTION = 0.1
"""Without a file to validate on."""


def split_indices(
    groups: Sequence[str],
    config_types: Sequence[str],
    fractions: Mapping[str, float],
    seed: int,
) -> dict[str, list[int]]:
    """Deal whole groups out to named splits, evenly over config types.

    Groups are shuffled by ``seed``, ordered by the config type of their first member, and each
    is given to the split that lags furthest behind its share; so every config type is
    represented in proportion, up to the size of a group. A configuration without a group (empty
    text) is a group of its own. ``IsolatedAtom`` configurations go to the first split.

    Args:
        groups: group of each configuration.
        config_types: config type of each configuration.
        fractions: share of each split; must sum to 1.
        seed: the same seed gives the same split.

    Returns:
        Ascending indices by split name.
    """
    if abs(sum(fractions.values()) - 1.0) > 1e-9 or min(fractions.values()) < 0:
        raise ConfigError(
            f"the shares of a split must be >= 0 and sum to 1, got {dict(fractions)}"
        )
    names = list(fractions)
    result: dict[str, list[int]] = {name: [] for name in names}
    members: dict[str, list[int]] = {}
    for index, (group, config_type) in enumerate(zip(groups, config_types, strict=True)):
        if config_type == ISOLATED_ATOM:
            result[names[0]].append(index)
        else:
            members.setdefault(f"g{group}" if group else f"i{index}", []).append(index)
    lists = list(members.values())
    order = np.random.default_rng(seed).permutation(len(lists))
    shuffled = sorted((lists[i] for i in order), key=lambda item: config_types[item[0]])
    seen, given = 0, dict.fromkeys(names, 0)
    for item in shuffled:
        seen += len(item)
        lag = {name: fractions[name] * seen - given[name] for name in names}
        name = max(names, key=lambda entry: lag[entry])
        given[name] += len(item)
        result[name].extend(item)
    return {name: sorted(indices) for name, indices in result.items()}


def check_groups(groups: Sequence[str], split_by: str | None, where: str) -> None:
    """Refuse a ``split_by`` key that no configuration has."""
    if split_by is not None and not any(groups):
        raise DataError(
            f"{where}: no configuration has the key '{split_by}' given by split_by; leave it out"
            " to split configuration by configuration"
        )


def check_valid_fraction(fraction: float) -> None:
    """Refuse a share of validation configurations outside (0, 1)."""
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"must lie between 0 and 1, got {fraction}", where="valid_fraction")


def split_dataset(
    dataset: StructureDataset, valid_fraction: float, seed: int
) -> tuple[StructureDataset, StructureDataset]:
    """Split into (train, valid) by the ``split_by`` key the data set was opened with.

    Raises:
        ConfigError: the fraction lies outside (0, 1).
        DataError: no configuration has the ``split_by`` key, or a part would be empty.
    """
    check_valid_fraction(valid_fraction)
    groups = dataset.groups()
    check_groups(groups, dataset.options.split_by, dataset.path)
    parts = split_indices(
        groups,
        dataset.config_types(),
        {"train": 1.0 - valid_fraction, "valid": valid_fraction},
        seed,
    )
    for name, indices in parts.items():
        if not indices:
            raise DataError(
                f"{dataset.path}: valid_fraction {valid_fraction} of {len(dataset)} configurations"
                f" leaves the {name} part empty; give more data, another fraction or a valid_file"
            )
    return dataset.subset(parts["train"]), dataset.subset(parts["valid"])
