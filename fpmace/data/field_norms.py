"""RMS scale of the field features at the reference densities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.data.statistics import FLOOR
from fpmace.errors import DataError


def average_field_feature_norms(
    batches: Iterable[Batch],
    electrostatics: Any,
    fermi_level_offset: float,
    *,
    with_levels: bool = True,
) -> list[float]:
    """Return one RMS feature per (l, width), l-major.

    The features are those of the reference multipoles, the external field and the reference
    Fermi level less ``fermi_level_offset``, unnormalised; the mean runs over all atoms and
    the 2l+1 components. Graphs without reference charges or without a Fermi level (weight 0)
    are passed over; charges without multipoles are taken for the density.

    Args:
        batches: the training set.
        electrostatics: an ``Electrostatics`` with the options of the model.
        fermi_level_offset: eV.
        with_levels: the data has Fermi levels; False: 0 eV stands for all of them.

    Raises:
        DataError: no configuration has what is needed.
    """
    options = electrostatics.options
    n_widths, max_l = len(options.feature_widths), options.feature_max_l
    totals = torch.zeros(n_widths * (max_l + 1), dtype=torch.float64)
    n_atoms = 0
    for batch in batches:
        keep = batch.weights["charges"] > 0
        if with_levels:
            keep = keep & (batch.weights["fermi_level"] > 0)
        mask = keep[batch.batch]
        count = int(mask.sum())
        if count == 0:
            continue
        with torch.no_grad():
            features = reference_features(batch, electrostatics, fermi_level_offset)[mask]
        n_atoms += count
        start = 0
        for l in range(max_l + 1):  # noqa: E741
            block = features[:, start : start + n_widths * (2 * l + 1)]
            squares = block.reshape(count, n_widths, 2 * l + 1).double().pow(2)
            totals[l * n_widths : (l + 1) * n_widths] += squares.mean(dim=2).sum(dim=0).cpu()
            start += n_widths * (2 * l + 1)
    if n_atoms == 0:
        raise DataError(
            "field_feature_norms: average needs reference atomic_multipoles or charges"
            f"{' beside a fermi_level' if with_levels else ''}, and no configuration has them; "
            "give a list of norms, such as [25.0, 25.0, 1.0, 1.0] (see docs/which_labels.md)"
        )
    return [float(value) for value in (totals / n_atoms).sqrt().clamp_min(FLOOR)]


def reference_features(batch: Batch, electrostatics: Any, fermi_level_offset: float) -> Tensor:
    """Return [n_atoms, n_features] unnormalised field features of the reference state, V."""
    density = batch.labels["atomic_multipoles"][:, : electrostatics.n_density]
    plan = electrostatics.plan(batch.positions, batch.cell, batch.pbc, batch.batch, batch.ptr)
    constant = (batch.labels["fermi_level"] - fermi_level_offset)[batch.batch]
    return (
        plan.potential_features(density)
        + electrostatics.external_features(
            batch.positions, batch.batch, batch.external_field, None
        )
        + electrostatics.fermi_features(constant)
    )
