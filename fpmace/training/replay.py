"""Replay: part of the data that a foundation model was trained on, kept in the fine-tuning."""

from __future__ import annotations

import logging
from collections.abc import Collection

import numpy as np
import torch
from ase.data import chemical_symbols

from fpmace.config.replay import REPLAY_HEAD
from fpmace.config.schema import TrainConfig
from fpmace.data.dataset import StructureDataset, make_loader
from fpmace.errors import ConfigError, DataError
from fpmace.models.backbone_model import BackboneModel
from fpmace.training.foundation import foundation_of_head

logger = logging.getLogger(__name__)


def selected(
    config: TrainConfig, replay: StructureDataset, elements: Collection[int]
) -> StructureDataset:
    """The configurations that are replayed: by elements, then at most ``num_samples_pt``.

    Args:
        replay: data of the foundation model.
        elements: those of the other heads.

    Raises:
        DataError: no configuration has fitting elements.
        ConfigError: the foundation model has no descriptors.
    """
    kept = fitting(replay, set(elements), config.filter_type_pt)
    if not kept:
        shown = ", ".join(chemical_symbols[z] for z in sorted(elements))
        raise DataError(
            f"{replay.path}: none of {len(replay)} configurations fits the elements {shown} "
            f"(filter_type_pt {config.filter_type_pt}); use filter_type_pt: none or other data"
        )
    n_wanted, how = config.num_samples_pt, "all"
    chosen = np.array(kept)
    if n_wanted < len(kept):
        how = "random ones"
        random = np.random.default_rng(config.seed)
        if config.subselect_pt == "fps":
            how = "farthest points in descriptor space"
            points = descriptors(config, replay.subset(kept))
            chosen = chosen[farthest_points(points, n_wanted, int(random.integers(len(kept))))]
        else:
            chosen = chosen[random.permutation(len(kept))[:n_wanted]]
    logger.info(
        "replay: %d of %d configurations of %s fit the elements, %s: %d",
        *(len(kept), len(replay), replay.path, how, len(chosen)),
    )
    return replay.subset(sorted(chosen.tolist()))


def fitting(replay: StructureDataset, elements: set[int], how: str) -> list[int]:
    """Indices of configurations whose elements fit.

    Args:
        how: ``none``: any; ``combinations``: none but ``elements``; ``inclusive``: all of them;
            ``exclusive``: exactly them.
    """
    fits = {
        "none": lambda found: True,
        "combinations": lambda found: found <= elements,
        "inclusive": lambda found: found >= elements,
        "exclusive": lambda found: found == elements,
    }[how]
    return [n for n in range(len(replay)) if fits(set(replay[n].atomic_numbers.tolist()))]


@torch.no_grad()
def descriptors(config: TrainConfig, replay: StructureDataset) -> np.ndarray:
    """Mean over the atoms of the foundation model's scalar features of all layers.

    Returns:
        [n, n_layers * n_channels], each column with unit variance over the configurations.
    """
    model = foundation_of_head(config, REPLAY_HEAD)
    if not isinstance(model, BackboneModel):
        raise ConfigError(
            f"a {type(model).__name__} has no features to compare structures by; use random",
            where="subselect_pt",
        )
    found = []
    for batch in make_loader(replay, 16, dtype=next(model.parameters()).dtype):
        geometry = model.geometry(batch)
        layers = model.backbone_features(geometry).node_feats_per_layer
        scalars = [
            layer[:, : irreps[0].dim]
            for layer, irreps in zip(layers, model.backbone.layer_irreps, strict=True)
        ]
        total = geometry.sum_over_atoms(torch.cat(scalars, dim=1))
        found.append((total / batch.atoms_per_graph.unsqueeze(1)).double().numpy())
    points = np.concatenate(found)
    spread: np.ndarray = points.std(axis=0)
    return points / np.where(spread > 0, spread, 1.0)


def farthest_points(points: np.ndarray, n_wanted: int, first: int) -> list[int]:
    """Indices of points chosen one by one, each the farthest from all chosen before it.

    Gonzalez, Theor. Comput. Sci. 38, 293 (1985).

    Args:
        points: [n, d].
        first: the one to begin with.
    """
    chosen = [first]
    nearest = np.linalg.norm(points - points[first], axis=1)
    while len(chosen) < n_wanted:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen
