"""Fragments that keep their charge, from the labels of a batch."""

from __future__ import annotations

import torch

from fpmace.data.batch import Batch
from fpmace.data.keys import PROPERTIES
from fpmace.errors import DataError
from fpmace.scf.fragments import HeldFragments
from fpmace.scf.problem import ChargeGroups

_SMALLEST_CHARGE = 1e-6
"""Charge (e) by which a total charge may differ from the sum of the fragments."""


def fragments_of(batch: Batch) -> HeldFragments:
    """The fragments of a batch: atoms with one ``cluster_id``, charged by their formal charges.

    Raises:
        DataError: if a structure lacks either, or the charges of its fragments do not sum to its
            total charge.
    """
    for name in ("cluster_id", "formal_charges"):
        weight = batch.weights.get(name)
        absent = weight is not None and not bool((weight > 0).all())
        if name not in batch.labels or absent:
            raise DataError(
                f"charge_per: fragment needs {name} of every atom, and a structure has none; give "
                f"it the array '{PROPERTIES[name].key}', or use charge_per: structure"
            )
    keys = torch.stack([batch.batch, batch.labels["cluster_id"].long()], dim=1)
    fragments, index = torch.unique(keys, dim=0, return_inverse=True)
    groups = ChargeGroups(index, len(fragments), fragments[:, 0])
    charge = groups.sum(batch.labels["formal_charges"])
    total = torch.zeros_like(batch.total_charge).index_add(0, groups.graph, charge)
    error = (total - batch.total_charge).abs()
    worst = int(error.argmax())
    if float(error[worst]) > _SMALLEST_CHARGE:
        raise DataError(
            f"structure {worst}: the formal charges sum to {float(total[worst]):g} e, but its "
            f"total_charge is {float(batch.total_charge[worst]):g} e; with charge_per: fragment "
            "they must agree"
        )
    return HeldFragments(groups, charge)
