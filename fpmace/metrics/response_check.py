"""The response of a model on a few structures, and in words what is unphysical about it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fpmace.data.batch import Batch
from fpmace.data.dataset import StructureDataset
from fpmace.data.loader import make_loader
from fpmace.errors import ConfigError, ScfError
from fpmace.metrics.pairs import PairSigns
from fpmace.models.base import Model
from fpmace.observables.converged import ConvergedSolution, converge
from fpmace.observables.passivity import eigenvalues, is_negative, open_part, remedy
from fpmace.observables.perturbation import charge_response, field_response
from fpmace.scf.options import ScfOptions

STRUCTURES = 20
"""How many structures are checked, evenly spaced in the data set."""

_BATCH_SIZE = 5
_ASYMMETRY = 0.01
"""Asymmetry, in units of the mean of the diagonal, from which a user is told."""


@dataclass
class ResponseCheck:
    """What a few structures answer; lists have one entry per structure.

    Attributes:
        smallest, largest: e Angstrom^2/V, extreme eigenvalues of the symmetric part of the
            polarizability, along open directions.
        asymmetry: e Angstrom^2/V, largest difference of the polarizability and its transpose.
        trace: e Angstrom^2/V, a third of the trace.
        labelled: (model, label) of a third of the trace, where the data has polarizabilities.
        capacitance: dQ/dmu, e/eV; empty where nothing follows a Fermi level.
        map_smallest, map_largest: extreme real parts of eigenvalues of the map's Jacobian.
        negative: structures (index in the file) with a negative eigenvalue of the polarizability.
        undefined: structures without a converged solution or a response.
        pairs: dipoles of pairs without and with a field, of the whole data set.
        remedy: what to do about an unphysical response.
    """

    smallest: list[float] = field(default_factory=list)
    largest: list[float] = field(default_factory=list)
    asymmetry: list[float] = field(default_factory=list)
    trace: list[float] = field(default_factory=list)
    labelled: list[tuple[float, float]] = field(default_factory=list)
    capacitance: list[float] = field(default_factory=list)
    map_smallest: list[float] = field(default_factory=list)
    map_largest: list[float] = field(default_factory=list)
    negative: list[int] = field(default_factory=list)
    undefined: list[int] = field(default_factory=list)
    pairs: PairSigns = field(default_factory=PairSigns)
    remedy: str = ""

    @property
    def n_structures(self) -> int:
        """Structures that were checked."""
        return len(self.undefined) + max(len(self.trace), len(self.capacitance))

    def describe(self) -> str:
        """A few lines of numbers."""
        parts = []
        if self.trace:
            parts.append(
                f"polarizability eigenvalues from {min(self.smallest):.3g} to "
                f"{max(self.largest):.3g} e A^2/V, negative in {len(self.negative)}, asymmetry at "
                f"most {max(self.asymmetry):.1e}"
            )
        if self.capacitance:
            parts.append(_range("dQ/dmu", self.capacitance, "e/eV"))
        if self.map_largest:
            parts.append(_range("eigenvalues of the map", self.map_smallest + self.map_largest))
        if self.labelled:
            off = torch.tensor([abs(a / b - 1.0) for a, b in self.labelled if b != 0])
            parts.append(
                f"trace off by {100 * float(off.median()):.0f} % of the label (median of "
                f"{len(off)}), wrong sign in {sum(a * b < 0 for a, b in self.labelled)}"
            )
        if self.pairs.n_pairs:
            parts.append(str(self.pairs))
        return f"response of {self.n_structures} structures: {'; '.join(parts) or 'none'}"

    def warnings(self) -> list[str]:
        """What is unphysical, in words; the first says what to do about it."""
        count, found = len(self.trace), []
        if self.pairs.n_wrong:
            found.append(
                f"the model's dipole falls with the field in {self.pairs.n_wrong} of "
                f"{self.pairs.n_pairs} pairs without and with a field"
            )
        if self.negative:
            found.append(
                f"the polarizability has a negative eigenvalue in {len(self.negative)} of {count} "
                f"structures (such as {self.negative[0]}, lowest {min(self.smallest):.3g} e A^2/V)"
            )
        skew = [a for a, t in zip(self.asymmetry, self.trace, strict=True) if a > self._limit(t)]
        if skew:
            found.append(
                f"the polarizability is not symmetric in {len(skew)} of {count} structures "
                f"(by up to {max(skew):.2g} e A^2/V): the density has no energy that it minimises"
            )
        rising = [value for value in self.capacitance if value > 0]
        if rising:
            found.append(
                f"the charge rises with the Fermi level in {len(rising)} of "
                f"{len(self.capacitance)} structures (dQ/dmu up to {max(rising):.2g} e/eV)"
            )
        unstable = sum(value >= 1.0 for value in self.map_largest)
        if unstable:
            found.append(
                f"the map has an eigenvalue of 1 or more in {unstable} of "
                f"{len(self.map_largest)} structures: their solutions are unstable"
            )
        if self.undefined:
            found.append(
                f"{len(self.undefined)} of {self.n_structures} structures have no converged "
                f"solution or no response there (such as {self.undefined[0]})"
            )
        return [text + (self.remedy if number == 0 else "") for number, text in enumerate(found)]

    @staticmethod
    def _limit(trace: float) -> float:
        return max(_ASYMMETRY * abs(trace), 1e-6)

    def to_json(self) -> dict[str, object]:
        """Plain numbers for the results file."""
        found: dict[str, object] = {
            "n_structures": self.n_structures,
            "n_negative": len(self.negative),
            "n_undefined": len(self.undefined),
            "pairs": self.pairs.to_json(),
        }
        if self.trace:
            found["smallest_eigenvalue"] = min(self.smallest)
            found["largest_asymmetry"] = max(self.asymmetry)
            found["mean_polarizability"] = math.fsum(self.trace) / len(self.trace)
        if self.capacitance:
            found["charge_by_fermi_level"] = [min(self.capacitance), max(self.capacitance)]
        if self.map_largest:
            found["map_eigenvalues"] = [min(self.map_smallest), max(self.map_largest)]
        return found


def check_response(
    model: Model, batches: Iterable[Batch], scf: ScfOptions, pairs: PairSigns | None = None
) -> ResponseCheck:
    """Converge structures and look at their linear response.

    Args:
        model: a model with a density, of the batches' dtype and device.
        batches: a few structures.
        scf: tolerances; failures are counted, not raised.
        pairs: what the pairs of the data set say.
    """
    found = ResponseCheck(pairs=pairs or PairSigns(), remedy=remedy(model))
    quiet = dataclasses.replace(scf, on_failure="ignore", history="none", diagnostics=True)
    for batch in batches:
        try:
            _add(found, model, batch, quiet)
        except ScfError:
            for one in _singles(batch):
                _add_alone(found, model, one, quiet)
    found.undefined = list(dict.fromkeys(found.undefined))
    return found


def check_dataset(
    model: Model,
    dataset: StructureDataset,
    scf: ScfOptions,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    pairs: PairSigns | None = None,
) -> ResponseCheck:
    """:func:`check_response` of evenly spaced members of a data set."""
    step = max(1, math.ceil(len(dataset) / STRUCTURES))
    chosen = dataset.subset(range(0, len(dataset), step))
    batches = make_loader(chosen, _BATCH_SIZE, dtype=dtype)
    return check_response(model, (batch.to(device) for batch in batches), scf, pairs)


def _add_alone(found: ResponseCheck, model: Model, batch: Batch, scf: ScfOptions) -> None:
    try:
        _add(found, model, batch, scf)
    except ScfError:
        found.undefined += batch.index.tolist()


def _add(found: ResponseCheck, model: Model, batch: Batch, scf: ScfOptions) -> None:
    solution = converge(model, batch, scf)
    if solution.scf is not None and not bool(solution.scf.converged.all()):
        done = solution.scf.converged
        found.undefined += batch.index[~done].tolist()
        if bool(done.any()):
            _add(found, model, batch.select(done), scf)
        return
    alpha = None
    if "external_field" in model.inputs:
        alpha = field_response(solution).polarizability
    capacitance = _capacitance(solution)
    if alpha is not None:
        _add_polarizability(found, open_part(alpha, batch), batch)
    found.capacitance += [] if capacitance is None else capacitance.tolist()
    if solution.scf is not None and solution.scf.diagnostics is not None:
        found.map_smallest += solution.scf.diagnostics.smallest_real.tolist()
        found.map_largest += solution.scf.diagnostics.largest_real.tolist()


def _capacitance(solution: ConvergedSolution) -> Tensor | None:
    """dQ/dmu [n_graphs], None for a density that follows no Fermi level."""
    if not solution.model.solves_self_consistency:
        return None
    try:
        return charge_response(solution).capacitance
    except ConfigError:
        return None


def _add_polarizability(found: ResponseCheck, alpha: Tensor, batch: Batch) -> None:
    values = eigenvalues(alpha)
    found.smallest += values[:, 0].tolist()
    found.largest += values[:, -1].tolist()
    found.asymmetry += (alpha - alpha.mT).abs().amax((1, 2)).tolist()
    trace = values.mean(-1)
    found.trace += trace.tolist()
    found.negative += batch.index[is_negative(values)].tolist()
    weight, label = batch.weights.get("polarizability"), batch.labels.get("polarizability")
    if weight is None or label is None:
        return
    known = weight > 0
    labels = label.diagonal(dim1=1, dim2=2).mean(-1)
    found.labelled += list(zip(trace[known].tolist(), labels[known].tolist(), strict=True))


def _singles(batch: Batch) -> Iterable[Batch]:
    graphs = torch.arange(batch.n_graphs, device=batch.ptr.device)
    return (batch.select(graphs == graph) for graph in range(batch.n_graphs))


def _range(name: str, values: list[float], unit: str = "") -> str:
    return f"{name} from {min(values):.3g} to {max(values):.3g} {unit}".rstrip()
