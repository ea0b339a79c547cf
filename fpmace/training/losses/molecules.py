"""Losses of molecular forces: rigid-body motion of molecules in liquids and clusters.

A molecule is a pair (graph, cluster id); molecules must be whole (not cut by a periodic
boundary) for the virial.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.metrics import residuals
from fpmace.metrics.averages import Average
from fpmace.observables.types import Observables
from fpmace.registry import register_loss
from fpmace.training.losses.base import Loss


@dataclass(frozen=True)
class _Molecules:
    graph: Tensor  # [n_molecules]
    force_error: Tensor  # [n_molecules, 3] predicted minus reference, eV/Angstrom
    centre: Tensor  # [n_molecules, 3] mean position, Angstrom


def _molecules(batch: Batch, prediction: Observables) -> _Molecules:
    difference = residuals.forces(batch, prediction).difference
    identifiers = batch.labels.get("cluster_id")
    if identifiers is None:
        identifiers = torch.zeros_like(batch.batch)
    pairs = torch.stack([batch.batch, identifiers.to(batch.batch.dtype).reshape(-1)], dim=1)
    unique, molecule = torch.unique(pairs, dim=0, return_inverse=True)
    zeros = difference.new_zeros(len(unique), 3)
    counts = torch.bincount(molecule, minlength=len(unique)).to(difference.dtype)
    return _Molecules(
        graph=unique[:, 0],
        force_error=zeros.index_add(0, molecule, difference),
        centre=zeros.index_add(0, molecule, batch.positions.detach()) / counts.unsqueeze(-1),
    )


def _weight(batch: Batch) -> Tensor:
    """[n_graphs] force weight, zero for graphs without cluster ids."""
    return residuals.property_weight(batch, "forces") * (
        residuals.presence_weight(batch, "cluster_id") > 0
        if "cluster_id" in batch.labels
        else torch.zeros_like(batch.weight)
    )


@register_loss("molecular_forces")
class MolecularForcesLoss(Loss):
    """mean_g w_g w^F_g (1/N_g) sum over molecules m and components of (F_m_ref - F_m)^2."""

    requires_labels = ("forces", "cluster_id")
    requires_outputs = ("forces",)

    def average(self, batch: Batch, prediction: Observables) -> Average:
        molecules = _molecules(batch, prediction)
        squared = molecules.force_error.square().sum(-1)
        per_graph = squared.new_zeros(batch.n_graphs).index_add(0, molecules.graph, squared)
        return Average.of(_weight(batch) * per_graph / batch.atoms_per_graph)


def _virial_error(batch: Batch, prediction: Observables) -> Tensor:
    """[n_graphs] eV: sum over molecules of centre . force error."""
    molecules = _molecules(batch, prediction)
    terms = (molecules.centre * molecules.force_error).sum(-1)
    return terms.new_zeros(batch.n_graphs).index_add(0, molecules.graph, terms)


@register_loss("cluster_virial")
class ClusterVirialLoss(Loss):
    """mean_g w_g w^F_g v_g^2 with v_g = sum_m R_m . (F_m - F_m_ref), R_m the molecule's centre."""

    requires_labels = ("forces", "cluster_id")
    requires_outputs = ("forces",)

    def average(self, batch: Batch, prediction: Observables) -> Average:
        return Average.of(_weight(batch) * _virial_error(batch, prediction).square())


@register_loss("cluster_virial_per_atom")
class ClusterVirialPerAtomLoss(Loss):
    """mean_g w_g w^F_g v_g^2 / N_g, v_g as in cluster_virial."""

    requires_labels = ("forces", "cluster_id")
    requires_outputs = ("forces",)

    def average(self, batch: Batch, prediction: Observables) -> Average:
        squared = _virial_error(batch, prediction).square()
        return Average.of(_weight(batch) * squared / batch.atoms_per_graph)
