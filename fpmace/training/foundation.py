"""What a training takes from its foundation model besides weights: atomic energies."""

from __future__ import annotations

from math import ceil

import numpy as np
import torch

from fpmace import registry
from fpmace.config.schema import TrainConfig
from fpmace.conversion.foundation import head_rows, load_foundation
from fpmace.data.dataset import StructureDataset, make_loader
from fpmace.data.statistics import AtomicEnergies
from fpmace.density_modes.base import DensityMode
from fpmace.errors import DataError
from fpmace.models.base import Model
from fpmace.models.heads import energies_by_head, of_one_head
from fpmace.models.initial import check_known_elements
from fpmace.observables.predict import predict
from fpmace.scf.options import ScfOptions

MOST_ESTIMATED = 2000
"""Configurations that atomic energies are estimated from, evenly spaced in the data."""


def foundation_energies(
    config: TrainConfig, asked: str, train: StructureDataset, head: str = "Default"
) -> AtomicEnergies:
    """E0 in eV by atomic number: those of the foundation model, as they are or corrected.

    ``estimated`` adds, element by element, the least-squares solution of the energies that the
    foundation model leaves; of smallest norm where the compositions do not fix it.

    Args:
        asked: ``foundation`` or ``estimated``.
        train: configurations of one head.
        head: its name.

    Raises:
        DataError: an element is unknown to the model; no configuration has an energy.
        ConfigError: the foundation model has several heads, and none is named.
    """
    assert config.foundation_model is not None
    source = foundation_of_head(config, head)
    numbers = train.info.atomic_numbers
    check_known_elements(source, numbers, train.path, "foundation_model")
    (known,) = energies_by_head(source.config)
    if asked == "foundation":
        return {z: known[z] for z in numbers}
    counts, left = _left_over(source, train)
    correction = np.linalg.lstsq(counts, left, rcond=1e-8)[0]
    return {z: known[z] + float(step) for z, step in zip(numbers, correction, strict=True)}


def foundation_of_head(config: TrainConfig, head: str) -> Model:
    """The foundation model, reduced to the head that a head of the training starts from."""
    assert config.foundation_model is not None
    source = load_foundation(config.foundation_model)
    if len(source.heads) == 1:
        return source
    (row,) = head_rows(source, [head], config.foundation_head or _same(source, head))
    return of_one_head(source, source.heads[row])


def _same(source: Model, head: str) -> str | None:
    return head if head in source.heads else None


def _left_over(source: Model, train: StructureDataset) -> tuple[np.ndarray, np.ndarray]:
    """Atoms of each element [n, n_elements], and energies less those of a model, eV [n]."""
    chosen = range(0, len(train), ceil(len(train) / MOST_ESTIMATED))
    numbers = torch.tensor(train.info.atomic_numbers)
    counts, left = [], []
    for batch in make_loader(train.subset(chosen), 16, dtype=next(source.parameters()).dtype):
        labelled = batch.weights["energy"] > 0
        found = predict(source, batch, mode=_mode(source), outputs=("energy",)).energy
        per_atom = (batch.atomic_numbers.unsqueeze(-1) == numbers).double()
        table = per_atom.new_zeros(batch.n_graphs, len(numbers)).index_add(
            0, batch.batch, per_atom
        )
        counts.append(table[labelled].numpy())
        left.append((batch.labels["energy"] - found)[labelled].double().numpy())
    if sum(map(len, left)) == 0:
        raise DataError(
            f"{train.path}: E0s: estimated needs energies, but no configuration has "
            f"{train.options.keys.key('energy')}; give E0s: foundation, or a mapping"
        )
    return np.concatenate(counts), np.concatenate(left)


def _mode(source: Model) -> DensityMode | None:
    if not source.solves_self_consistency:
        return None
    scf = ScfOptions(on_failure="ignore")
    mode: DensityMode = registry.build("training_mode", "scf", where="scf_options", scf=scf)
    return mode
