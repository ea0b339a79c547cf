"""A model on a file of configurations: predictions, errors and convergence, in a stream."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from ase import Atoms

from fpmace import registry
from fpmace.annotations import Values, plain
from fpmace.calculators.inputs import data_options
from fpmace.calculators.loading import model_device, model_dtype, open_model
from fpmace.calculators.results import graph_results
from fpmace.calculators.scf_mode import InferenceScf
from fpmace.data.atomic_data import AtomicData, atomic_data, collate
from fpmace.data.batch import Batch
from fpmace.data.budget import counted_budget, in_batches
from fpmace.data.checks import check_geometry, check_overlap
from fpmace.data.configuration import Configuration
from fpmace.data.extxyz import Frame, iterate_frames, read_frames
from fpmace.data.heads import Head
from fpmace.data.keys import KeyMapping, plain_names
from fpmace.data.neighborhood import neighborhood
from fpmace.data.options import DataOptions
from fpmace.data.trained_range import charge_and_field
from fpmace.density_modes.base import DensityMode
from fpmace.density_modes.direct import Direct
from fpmace.devices import own_device
from fpmace.distributed.process import ALONE, Process
from fpmace.evaluation.columns import columns
from fpmace.evaluation.findings import Findings, Measured
from fpmace.evaluation.options import EvaluationOptions
from fpmace.evaluation.sharing import write_shared
from fpmace.evaluation.streaming import (
    Survey,
    check_explicit_keys,
    check_required,
    read,
    survey,
)
from fpmace.evaluation.writer import ResumableWriter, text_of
from fpmace.metrics.errors import ErrorStatistics, ErrorTable, measurable
from fpmace.metrics.parity import ParityData, free_atom_energies
from fpmace.metrics.response_check import STRUCTURES, ResponseCheck, check_response
from fpmace.metrics.scf_summary import ScfSummary
from fpmace.metrics.tables import error_table
from fpmace.models.base import Model
from fpmace.models.io import weights_checksum
from fpmace.observables.predict import DIPOLE_DERIVATIVES, predict
from fpmace.observables.types import Observables
from fpmace.plots.parity import plot_parity

_CHECKED = 5
_SHARE = 64
"""Configurations that a process takes at a time where batches go by a budget."""
_DENSITY_OUTPUTS = frozenset({"dipole", "density", "fermi_level", "electrostatic_potentials"})


@dataclass
class EvaluationReport:
    """What an evaluation found.

    Attributes:
        n_configurations: evaluated in all; ``n_resumed`` of them by an earlier run.
        errors: row of the table (``all`` and the config_types, or the heads if the model has
            several) -> errors by quantity.
        table: the error table as text, None without labels.
        scf: convergence of the loops, None where none was run.
        unconverged: indices of configurations that did not converge (the first 20).
        plot: file of the parity plots, None without.
        parity, groups: reference and predicted values, and the names of their groups, if a plot
            or a page was asked for.
        table_name: name of the error table.
        response: the response of a few structures, for self-consistent and local densities.
    """

    n_configurations: int = 0
    n_resumed: int = 0
    errors: dict[str, dict[str, ErrorStatistics]] = field(default_factory=dict)
    table: str | None = None
    scf: ScfSummary | None = None
    unconverged: list[int] = field(default_factory=list)
    plot: str | None = None
    parity: dict[str, ParityData] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    table_name: str = ""
    response: ResponseCheck | None = None


def evaluate_file(
    options: EvaluationOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
    message: Callable[[str], None] = print,
    process: Process = ALONE,
) -> EvaluationReport:
    """Evaluate every configuration of a file and write it with its predictions.

    Args:
        options: what to do.
        progress: called with (configurations done, configurations in all) after each batch.
        message: called with remarks, such as an option that does not apply.
        process: one of several that share the file out; the first one writes, calls ``progress``
            and ``message``, and has the report.

    Raises:
        FpmaceError: a file, an option or a configuration is unusable.
    """
    model = open_model(
        options.model,
        device=own_device(options.device, process),
        dtype=options.dtype,
        pbc_handling=options.pbc_handling if options.pbc_handling else None,
        plugins=options.plugins,
        inference=options.inference,
        head=options.head,
        all_heads=True,
    )
    return _Run(options, model, message, process).run(progress)


class _Run:
    """One pass over a file."""

    def __init__(
        self,
        options: EvaluationOptions,
        model: Model,
        message: Callable[[str], None],
        process: Process,
    ) -> None:
        self.model, self.process = model, process
        self.message = message if process.writes else lambda _: None
        self.device, self.dtype = model_device(model), model_dtype(model)
        self.found: Survey = survey(options.configs)
        options = self.options = self._with_trained_keys(options)
        self.outside: set[str] = set()
        self.told: set[str] = set()
        budget = options.batch_budget
        self.budget = None if budget is None else counted_budget(budget)
        self.notes: dict[str, str] = {}
        self.mode = self._mode()
        self._check_file()
        self.data_options = self._data_options()
        self.outputs = self._outputs()
        self.types = list(self._heads()) or sorted(self.found.config_types)
        counts = self.found.labels(options.keys)
        self.quantities = measurable(counts, self.outputs)
        self.table = self._table()
        atoms = free_atom_energies(model)
        drawn = options.plot or options.report
        self.measured = Measured(self.quantities, len(self.types), atoms, drawn, self.device)
        self.findings = Findings(self.measured)

    def run(self, progress: Callable[[int, int], None] | None) -> EvaluationReport:
        writer = self._writer() if self.process.writes else None
        total = self.found.n_configurations
        resumed = self.process.from_first(lambda: writer.n_done if writer else 0)
        if resumed:
            self.message(f"going on after {resumed} of {total} configurations")

        def done(count: int) -> None:
            if progress is not None:
                progress(count, total)

        if resumed and writer is not None:
            done(resumed)
        frames = islice(iterate_frames(self.options.configs), resumed, None)
        write_shared(
            self.process,
            in_batches(frames, self.options.batch_size if self.budget is None else _SHARE),
            self._evaluate,
            writer=writer,
            own=self._own,
            absorb=self._absorb,
            state=self.findings.state,
            progress=done,
        )
        if writer is None:
            return EvaluationReport(n_configurations=total, n_resumed=resumed)
        writer.finish()
        return self._report(total, resumed)

    def _writer(self) -> ResumableWriter:
        writer = ResumableWriter(
            self.options.output,
            self._fingerprint(),
            resume=self.options.resume,
            save_every=self.options.save_every,
        )
        if writer.resumed:
            self._resume(writer, self.found.n_configurations)
        return writer

    def _evaluate(self, frames: Sequence[Frame]) -> list[str]:
        chunk = list(read(self.options.configs, self.data_options, frames))
        for _, config in chunk:
            self._note_range(config)
        items = [self._item(config) for _, config in chunk]
        members = list(zip(chunk, items, strict=True))
        if self.budget is None:
            return self._evaluate_batch(members)
        costs = [self.budget.cost(item.n_atoms, item.n_edges) for item in items]
        batches = self.budget.split(members, costs)
        return [text for batch in batches for text in self._evaluate_batch(batch)]

    def _evaluate_batch(
        self, members: Sequence[tuple[tuple[Atoms, Configuration], AtomicData]]
    ) -> list[str]:
        batch = collate([item for _, item in members]).to(self.device, self.dtype)
        observables = predict(self.model, batch, mode=self.mode, outputs=self.outputs)
        types = [self._type_index(config) for (_, config), _ in members]
        group = torch.tensor(types, device=self.device)
        self.findings.add(batch, observables, group)
        return list(self._written([atoms for (atoms, _), _ in members], batch, observables))

    def _own(self) -> Values:
        """What this process found since the last time; that of the first one stays where it is."""
        notes, self.notes = self.notes, {}
        if self.process.writes:
            return {"notes": notes, "findings": None}
        found, self.findings = self.findings, Findings(self.measured)
        return {"notes": notes, "findings": found.state()}

    def _absorb(self, found: Values) -> None:
        if found["findings"] is not None:
            self.findings.merge(found["findings"])
        for name, text in found["notes"].items():
            if name not in self.told:
                self.told.add(name)
                self.message(text)

    def _with_trained_keys(self, options: EvaluationOptions) -> EvaluationOptions:
        """Keys that were named in training hold here too, where the file has them."""
        trained = self.model.metadata.get("keys", {})
        if by_head := trained.get("heads"):
            trained = next(iter(by_head.values()))
            if any(item["keys"] != trained["keys"] for item in by_head.values()):
                self.message("the heads had other keys in training; --head NAME takes its own")
                trained = {}
        named = {name: trained["keys"][name] for name in trained.get("explicit", [])}
        keys = dict(options.keys.keys)
        for name in sorted(set(named) & set(keys) - options.keys.explicit):
            there = KeyMapping({**keys, name: named[name]})
            if named[name] != keys[name] and self.found.count(name, there):
                self.message(f"{name} is read from {named[name]}, as in training")
                keys[name] = named[name]
        mapping = KeyMapping(keys, options.keys.explicit, options.keys.head)
        return dataclasses.replace(options, keys=mapping)

    def _note_range(self, config: Configuration) -> None:
        """Tell of the first structure whose inputs the model has not seen in training."""
        values = config.properties
        scf = None if self.mode is None else self.mode.scf
        level = None
        if scf is not None and not scf.constant_charge:
            given_level = scf.initial_fermi_level
            level = float(given_level) if isinstance(given_level, int | float) else 0.0
            level = float(values.get("fermi_level", level))
        given = charge_and_field(
            float(values.get("total_charge", 0.0)),
            values.get("external_field", (0.0, 0.0, 0.0)),
            config.n_atoms,
            level,
        )
        for name, text in self.model.trained_range.outside(given).items():
            if name not in self.outside:
                self.outside.add(name)
                note = f"warning: {config.where}: {text}"
                if self.process.alone:
                    self.message(note)
                else:
                    self.notes[name] = note

    def _item(self, config: Configuration) -> AtomicData:
        check_geometry(config, self.data_options)
        edges = neighborhood(config.positions, config.cell, config.pbc, self.model.r_max)
        check_overlap(config, *edges, self.data_options)
        return atomic_data(
            config, self.model.r_max, self.data_options, index=config.index, edges=edges
        )

    def _written(
        self, structures: list[Atoms], batch: Batch, observables: Observables
    ) -> Iterator[str]:
        prefix = self.options.info_prefix
        for graph, atoms in enumerate(structures):
            results = graph_results(observables, batch, graph)
            per_atom, per_graph = columns(results, self.options.scf_history)
            for name, value in per_atom.items():
                atoms.arrays[prefix + name] = value
            for name, value in per_graph.items():
                atoms.info[prefix + name] = value
            yield text_of(atoms)

    def _type_index(self, config: Configuration) -> int:
        """Place of the row of the table: that of the head, if there are several."""
        name = config.head or config.config_type
        return self.types.index(name) if name in self.types else 0

    def _mode(self) -> DensityMode | None:
        if not self.model.solves_self_consistency:
            if self.options.mode is not None:
                name = f"a {type(self.model).__name__} model without a self-consistent density"
                self.message(f"{self.options.model} is {name}: --mode is ignored")
            return None
        if self.options.mode == "direct":
            return Direct()
        scf = dataclasses.replace(
            self.options.scf,
            history=self.options.scf_history,  # type: ignore[arg-type]
        )
        return InferenceScf(scf=scf, tolerant=True)

    def _check_file(self) -> None:
        options, found = self.options, self.found
        check_explicit_keys(found, options.keys, options.configs)
        present = {*found.info_keys, *found.arrays_keys}
        usual = plain_names(present, found.labels(options.keys), options.keys)
        for name, other in usual.items():
            key = options.keys.key(name)
            self.message(
                f"no configuration has {key}, but '{other}' is there: give --{name}_key {other} "
                "to compare with it"
            )
        if self.mode is None:
            return
        reason = "--mode direct" if options.mode == "direct" else "a start from the data"
        needed = self.mode.requires_labels
        if options.mode == "direct":
            needed = self.mode.labels_needed_of(found.labels(options.keys))
        held = ("cluster_id", "formal_charges") if self.mode.holds_fragments else ()
        check_required(found, held, options.keys, options.configs, "charge_per: fragment")
        check_required(found, needed, options.keys, options.configs, reason)
        if len(needed) < len(self.mode.requires_labels):
            level = options.keys.key("fermi_level")
            self.message(f"no configuration has {level}; 0 eV is taken for the Fermi level")
        told = "total_charge" in {*options.defaults, *self.model.required_inputs}
        if self.mode.constant_charge and self.mode.solves and not told:
            missing = found.n_configurations - found.count("total_charge", options.keys)
            if missing:
                self.message(
                    f"{missing} of {found.n_configurations} configurations have no "
                    f"{options.keys.key('total_charge')}; they are taken as neutral"
                )

    def _heads(self) -> tuple[str, ...]:
        """Those that configurations name; none for a model of one head."""
        return self.model.heads if len(self.model.heads) > 1 else ()

    def _data_options(self) -> DataOptions:
        return dataclasses.replace(
            data_options(self.model),
            keys=self.options.keys,
            heads=tuple(Head(name, self.options.keys) for name in self._heads()),
            defaults=self.options.defaults,
            keep_isolated_atoms=True,
            check_keys=False,
        )

    def _outputs(self) -> frozenset[str]:
        outputs = {"energy"}
        if self.options.forces:
            outputs.add("forces")
        if self.options.stress:
            outputs |= {"stress", "virials"}
        density = set(_DENSITY_OUTPUTS)
        if self.options.mode != "direct":
            density |= {n for n in DIPOLE_DERIVATIVES if self.found.count(n, self.options.keys)}
        return frozenset(outputs | (density & self.model.outputs))

    def _table(self) -> tuple[str, ErrorTable]:
        name = self.options.error_table
        if name is None:
            name = "EnergyDensityDipoleRMSE" if self.model.has_density else "PerAtomRMSE"
        return name, registry.build("error_table", name, where="error_table")

    def _report(self, total: int, resumed: int) -> EvaluationReport:
        report = EvaluationReport(n_configurations=total, n_resumed=resumed)
        report.unconverged = self.findings.unconverged
        report.scf = self.findings.scf if self.findings.scf.n_graphs else None
        overall = self.findings.accumulator.statistics()
        if overall:
            report.errors = {"all": overall}
            if len(self.types) > 1:
                for number, name in enumerate(self.types):
                    report.errors[name] = self.findings.accumulator.statistics(number)
            report.table = error_table(self.table[1], report.errors)
        report.parity, report.groups = self.findings.parity, self.types
        report.table_name = self.table[0]
        if self.options.plot:
            path = Path(self.options.output).with_suffix(".parity.png")
            title = Path(self.options.configs).name
            drawn = plot_parity(self.findings.parity, title, path, self.types)
            report.plot = str(path) if drawn else None
        if self.model.has_density and self.options.mode != "direct":
            report.response = self._check_response(total)
        return report

    def _check_response(self, total: int) -> ResponseCheck:
        """Look at the response of a few structures, evenly spaced in the file."""
        step = max(1, math.ceil(total / STRUCTURES))
        path = self.options.configs
        frames = (frame for frame in iterate_frames(path) if frame.index % step == 0)
        items = [self._item(config) for config in read_frames(path, frames, self.data_options)]
        batches = (
            collate(items[start : start + _CHECKED]).to(self.device, self.dtype)
            for start in range(0, len(items), _CHECKED)
        )
        pairs = self.findings.accumulator.pair_signs
        return check_response(self.model, batches, self.options.scf, pairs)

    def _fingerprint(self) -> dict[str, str]:
        """What a resumed run must share with the one that began the file."""
        source = Path(self.options.configs)
        described = dataclasses.asdict(self.options)
        for name in ("resume", "save_every", "model", "configs", "output", "device"):
            described.pop(name)
        described["keys"] = self.options.keys.to_json()
        stamp = f"{source.name}, {source.stat().st_size} bytes"
        return {
            "input": f"{stamp}, {self.found.n_configurations} configurations",
            "model": weights_checksum(self.model.state_dict())[:16],
            "options of the model": repr(plain(self.model.config)),
            **{name: repr(value) for name, value in described.items()},
        }

    def _resume(self, writer: ResumableWriter, total: int) -> None:
        try:
            self.findings.restore(writer.state)
            if writer.n_done > total:
                raise ValueError("more than there are")
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            writer.close()
            raise writer.damaged() from error
