"""A whole training run: data, model, schedule, evaluation, files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from fpmace import registry
from fpmace.annotations import Values, plain
from fpmace.config.load import ResolvedConfig
from fpmace.config.schema import TrainConfig
from fpmace.data.budget import BatchBudget, check_budget, counted_budget
from fpmace.data.dataset import StructureDataset, StructureLoader, make_loader
from fpmace.data.statistics import DatasetStatistics
from fpmace.data.summary import data_summary
from fpmace.data.trained_range import TrainedRange
from fpmace.devices import own_device
from fpmace.distributed.process import ALONE, Process
from fpmace.files import atomic_write, locked
from fpmace.kernels.choice import use_kernels
from fpmace.metrics.baseline import DESCRIPTION, TrivialBaseline
from fpmace.metrics.errors import ErrorTable, check_error_table, measurable
from fpmace.metrics.response_check import check_dataset
from fpmace.metrics.tables import error_table
from fpmace.models.base import Model
from fpmace.models.initial import check_known_elements
from fpmace.models.io import save_model
from fpmace.models.size import check_training
from fpmace.observables.predict import DIPOLE_DERIVATIVES, predict
from fpmace.plots.parity import PARITY_QUANTITIES, plot_parity, plot_training
from fpmace.report.content import Content
from fpmace.report.pages import write_training_report
from fpmace.scf.options import ScfOptions
from fpmace.training import random_state
from fpmace.training.checkpoint import CheckpointStore
from fpmace.training.data import (
    Datasets,
    keys_of_heads,
    open_datasets,
    schedule_problems,
    training_statistics,
)
from fpmace.training.evaluate import Evaluation, evaluate
from fpmace.training.freezing import parameter_table
from fpmace.training.loggers import build_loggers, scalars
from fpmace.training.logs import run_log
from fpmace.training.losses import raise_problems
from fpmace.training.memory import estimate_step, memory_budget, propose_budget
from fpmace.training.progress import progress_bar
from fpmace.training.recorder import MetricsRecorder
from fpmace.training.run_files import RunPaths, describe, history
from fpmace.training.run_report import begin as begin_report
from fpmace.training.run_report import collected_warnings, figures_of
from fpmace.training.run_report import finish as finish_report
from fpmace.training.setup import (
    available_outputs,
    build_model,
    build_stages,
    check_model,
    evaluation_mode,
    torch_dtype,
    trainer_options,
    with_field_norms,
)
from fpmace.training.stages import Stage
from fpmace.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        model_path: the saved model; None after a dry run.
        evaluations: errors by split, of self-consistent solutions for models with a density.
    """

    model_path: Path | None
    evaluations: Mapping[str, Evaluation]


def run_training(resolved: ResolvedConfig, process: Process = ALONE) -> RunResult:
    """Do everything that ``fpmace-train`` does, except reading the command line.

    Args:
        process: which part of the training data is this process's, and whether it owns the files.

    Raises:
        FpmaceError: for anything that a user can mend.
    """
    config = resolved.config
    paths = RunPaths(Path(config.work_dir), config.name)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    log = paths.file(".log")
    # A dry run writes nothing that a run beside it could mind.
    alone = process.writes and not config.dry_run
    lock = locked(log, "work_dir") if alone else nullcontext()
    with lock, run_log(log, config.log_level, writes=process.writes):
        run = _Run(resolved, paths, process)
        with collected_warnings(run.content.warnings):
            return run.execute()


class _Run:
    """The steps of a run and what they share."""

    def __init__(self, resolved: ResolvedConfig, paths: RunPaths, process: Process) -> None:
        self.resolved, self.paths, self.process = resolved, paths, process
        self.config: TrainConfig = resolved.config
        self.device = torch.device(own_device(self.config.device, process))
        self.budget: BatchBudget | None = None
        if self.config.batch_budget:
            check_budget(self.config.batch_budget)
        self.stages: list[Stage] = build_stages(self.config)
        self.table: ErrorTable = registry.build(
            "error_table", self.config.error_table, where="error_table"
        )
        self.outputs = available_outputs(self.config)
        self.content = Content()
        self.trivial: dict[str, Evaluation] = {}
        parts = self.config.loggers if process.writes else ()
        self.loggers = build_loggers(parts, folder=paths.folder, name=paths.name)

    def execute(self) -> RunResult:
        config = self.config
        check_error_table(
            self.table,
            available_outputs=self.outputs,
            where="error_table",
            named=_table_name(config),
        )
        if config.init_from is None:
            check_model(config)
        for note in self.resolved.notes:
            logger.warning("init_from: %s", note)
        datasets = open_datasets(config)
        logger.info("data:\n%s", data_summary(datasets.named()))
        self._check_memory(datasets.train)
        problems = schedule_problems(self.stages, datasets, self.outputs)
        raise_problems(problems)
        statistics = self.process.from_first(lambda: self._statistics(datasets.train))
        random_state.seed_all(config.seed)
        model = self._build(statistics, datasets)
        logger.info("model: %s", describe(model, statistics))
        decays = trainer_options(config, self.device).decays
        logger.info("parameters:\n%s", parameter_table(model, self.stages, decays))
        self._set_budget(model, datasets.train)
        text = self.resolved.to_yaml()
        if config.dry_run:
            return self._dry_run(model, datasets, text)
        if self.process.writes:
            with atomic_write(self.paths.file("_config.yaml")) as temporary:
                temporary.write_text(text)
            begin_report(self.content, self.resolved, model, datasets.named(), self.process)
            self.content.save(self.paths.file("_report.json"))
        try:
            self._train(model, datasets)
            evaluations = self._evaluate(model, datasets)
            if self.process.writes:
                self._save(model, datasets, evaluations, text)
        finally:
            for item in self.loggers:
                item.close()
        return RunResult(self.paths.model, evaluations)

    def _memory_budget(
        self, model: Model, train: StructureDataset, gibibytes: float
    ) -> BatchBudget:
        return memory_budget(
            model,
            train,
            self.stages,
            gibibytes,
            predict=predict,
            device=self.device,
            dtype=torch_dtype(self.config),
        )

    def _set_budget(self, model: Model, train: StructureDataset) -> None:
        """What a batch may hold, the same in every process and after every restart."""
        given = self.config.batch_budget
        if not given:
            return
        unit, most = check_budget(given)
        if unit == "memory":
            self.budget = self.process.from_first(lambda: self._memory_budget(model, train, most))
        else:
            self.budget = counted_budget(given)
        logger.info("batches of at most %g %s", most, "GiB" if unit == "memory" else unit)

    def _check_memory(self, train: StructureDataset) -> None:
        if self.config.batch_budget:
            return
        size = min(self.config.batch_size, len(train))
        info = train.info
        share = size / max(info.n_configurations, 1)
        check_training(
            self.config.model_options,
            n_atoms=share * info.n_atoms,
            n_edges=share * info.n_edges,
            batch_size=size,
            dtype=torch_dtype(self.config),
            device=self.device,
        )

    def _statistics(self, train: StructureDataset) -> DatasetStatistics:
        statistics = training_statistics(self.config, self.resolved.origins, train)
        return with_field_norms(self.config, statistics, train)

    def _build(self, statistics: DatasetStatistics, datasets: Datasets) -> Model:
        """A new model, or that of ``init_from``."""
        config = self.config
        asked = self.resolved.origins.get("E0s", "default") != "default"
        model = build_model(config, statistics, device=self.device, own_energies=asked)
        use_kernels(model, config.kernels)
        if config.init_from is not None:
            check_known_elements(model, datasets.train.info.atomic_numbers, datasets.train.path)
            logger.info("init_from: options and weights of %s", config.init_from)
        return model

    def _dry_run(self, model: Model, datasets: Datasets, text: str) -> RunResult:
        batch = next(iter(self._loader(datasets.train, self.config.batch_size)))
        for stage in self.stages:
            estimate = estimate_step(model, batch, stage, predict=predict, device=self.device)
            logger.info("stage %d '%s', one step: %s", stage.index, stage.name, estimate)
        known = self._memory_budget(model, datasets.train, 1.0)
        logger.info("%s", propose_budget(known, datasets.train.sizes(), self.device))
        logger.info("resolved configuration:\n%s", text)
        logger.info("dry run: everything fits, nothing was trained")
        return RunResult(None, {})

    def _loader(
        self,
        dataset: StructureDataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        keep_pairs: bool = False,
        shared: bool = True,
    ) -> StructureLoader:
        process = self.process if shared else ALONE
        # Pairs that are measured must not be cut by the border between two processes.
        measured = not shuffle and not process.alone and "pair_id" in dataset.info.properties
        return make_loader(
            dataset,
            batch_size,
            shuffle=shuffle,
            seed=self.config.seed,
            num_workers=self.config.num_workers,
            dtype=torch_dtype(self.config),
            pin_memory=self.device.type == "cuda",
            rank=process.rank,
            world_size=process.world_size,
            keep_pairs=keep_pairs or measured,
            spill=not keep_pairs,
            budget=self.budget,
        )

    def _train(self, model: Model, datasets: Datasets) -> None:
        config = self.config
        assert config.valid_batch_size is not None
        shown = {column.quantity for column in self.table.columns()}
        outputs = self._cheap_outputs()
        quantities = [
            item
            for item in measurable(datasets.valid.info.properties, self.outputs)
            if item.name in shown or item.output in outputs
        ]
        pairs = any("pair_id" in stage.losses.requires_labels for stage in self.stages)
        trainer = Trainer(
            model,
            stages=self.stages,
            train_loader=self._loader(
                datasets.train, config.batch_size, shuffle=True, keep_pairs=pairs
            ),
            valid_loader=self._loader(datasets.valid, config.valid_batch_size, keep_pairs=pairs),
            quick_loader=self._quick_loader(datasets),
            options=trainer_options(config, self.device),
            quantities=quantities,
            store=CheckpointStore(self.paths.checkpoints, config.name, writes=self.process.writes),
            recorder=MetricsRecorder(
                self.paths.file("_metrics.jsonl"),
                writes=self.process.writes,
                loggers=self.loggers,
                config=plain(config),
            ),
            config=plain(config),
            predict=predict,
            process=self.process,
        )
        trainer.run(resume=config.restart_latest or self.process.restarts > 0)

    def _quick_loader(self, datasets: Datasets) -> StructureLoader | None:
        """A few validation structures, evenly spaced, at a small part of the cost of an epoch."""
        n_valid, size = len(datasets.valid), self.config.valid_batch_size
        chosen = min(self.config.quick_errors, -(-len(datasets.train) // 10), n_valid)
        if chosen == 0 or self.config.eval_interval == 1:
            return None
        places = [number * n_valid // chosen for number in range(chosen)]
        assert size is not None
        return self._loader(datasets.valid.subset(places), size)

    def _cheap_outputs(self) -> frozenset[str]:
        """Predictions that come with the energy and forces."""
        cheap = {"energy", "forces", "density", "dipole", "fermi_level"}
        if self.config.compute_stress:
            cheap |= {"stress", "virials"}
        return self.outputs & cheap

    def _evaluate(self, model: Model, datasets: Datasets) -> dict[str, Evaluation]:
        config = self.config
        assert config.valid_batch_size is not None
        model.eval()
        outputs = self._cheap_outputs() | self._table_outputs()
        drawn = config.plot or config.report or config.loggers
        found = {}
        for name, dataset in datasets.named().items():
            labelled = DIPOLE_DERIVATIVES & set(dataset.info.properties)
            logger.info("evaluating %s", name)
            loader, types = self._loader(dataset, config.valid_batch_size), dataset.config_types()
            found[name] = evaluate(
                model,
                progress_bar(loader, name),
                predict=predict,
                mode=evaluation_mode(config, diagnostics=name == "valid"),
                device=self.device,
                quantities=measurable(
                    dataset.info.properties, outputs | (labelled & self.outputs)
                ),
                groups=[types[index] for index in loader.members()],
                group_names=types,
                parity=tuple(PARITY_QUANTITIES) if drawn else (),
                process=self.process,
            )
        if not self.process.writes:
            return found
        self.trivial = self._trivial(datasets)
        self._report(found, self.trivial)
        if config.solves_self_consistency:
            logger.info("valid: %s", found["valid"].worst.describe(datasets.valid.path))
            logger.info("valid: %s", found["valid"].diagnostics)
            if danger := found["valid"].diagnostics.warning():
                logger.warning("valid: %s", danger)
        if config.has_density:
            self._check_response(model, datasets.valid, found["valid"])
        return found

    def _check_response(
        self, model: Model, dataset: StructureDataset, evaluation: Evaluation
    ) -> None:
        """Look at the response of a few structures, and warn of what is unphysical."""
        check = check_dataset(
            model,
            dataset,
            ScfOptions(**self.config.scf_options),
            dtype=torch_dtype(self.config),
            device=self.device,
            pairs=evaluation.accumulator.pair_signs,
        )
        logger.info("valid: %s", check.describe())
        for text in check.warnings():
            logger.warning("valid: %s", text)
        evaluation.response = check

    def _trivial(self, datasets: Datasets) -> dict[str, Evaluation]:
        """Errors of trivial predictions on the last data set, to compare with."""
        config = self.config
        if not config.has_density:
            return {}
        baseline = TrivialBaseline.fit(
            self._loader(datasets.train, config.batch_size, shared=False)
        )
        name, dataset = list(datasets.named().items())[-1]
        errors = evaluate(
            baseline,
            self._loader(dataset, config.batch_size, shared=False),
            predict=baseline.predict,
            mode=None,
            device=self.device,
            quantities=measurable(dataset.info.properties, self._table_outputs()),
        )
        return {f"{name}, trivial": errors}

    def _table_outputs(self) -> frozenset[str]:
        return frozenset(column.output for column in self.table.columns())

    def _report(
        self, evaluations: Mapping[str, Evaluation], trivial: Mapping[str, Evaluation]
    ) -> None:
        kind = (
            "self-consistent solutions" if self.config.solves_self_consistency else "predictions"
        )
        rows = {name: item.errors for name, item in {**evaluations, **trivial}.items()}
        note = f" ({DESCRIPTION})" if trivial else ""
        logger.info("errors of %s%s:\n%s", kind, note, error_table(self.table, rows))
        by_head = {
            f"{name}, {head}": errors
            for name, item in evaluations.items()
            for head, errors in item.errors_by_head.items()
        }
        if by_head:
            logger.info("errors by head:\n%s", error_table(self.table, by_head))
        last = list(evaluations)[-1]
        groups = evaluations[last].errors_by_group
        if len(groups) > max(1, len(evaluations[last].heads)):
            logger.info("%s by config_type:\n%s", last, error_table(self.table, groups))
        for name, item in evaluations.items():
            if item.scf.n_graphs:
                logger.info("%s: %s", name, item.scf)

    def _save(
        self,
        model: Model,
        datasets: Datasets,
        evaluations: Mapping[str, Evaluation],
        text: str,
    ) -> None:
        results = {name: item.to_json() for name, item in evaluations.items()}
        recorder = MetricsRecorder(self.paths.file("_metrics.jsonl"))
        with atomic_write(self.paths.file("_results.json")) as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n")
        metadata = {
            "training_config": text,
            "data": {name: item.info.to_json() for name, item in datasets.named().items()},
            "history": history(recorder.read()),
            "results": results,
            "keys": keys_of_heads(datasets.train.options),
            "trained_range": dict(
                TrainedRange.of(self._loader(datasets.train, 32, shared=False)).values
            ),
        }
        save_model(self.paths.model, model, metadata, save_cpu=self.config.save_cpu)
        if self.config.plot:
            plot_training(recorder.read(), self.paths.file("_training.png"))
            for name, evaluation in evaluations.items():
                path = self.paths.file(f"_parity_{name}.png")
                plot_parity(evaluation.parity, name, path, evaluation.groups)
        self._save_report(evaluations, results)

    def _save_report(self, evaluations: Mapping[str, Evaluation], results: Values) -> None:
        if self.config.report:
            finish_report(self.content, self.table, evaluations, self.trivial)
            self.content.save(self.paths.file("_report.json"))
            page = write_training_report(self.paths.file("_metrics.jsonl"))
            logger.info("report: %s", page)
        if self.loggers:
            figures = figures_of(self.paths.file("_metrics.jsonl"), evaluations)
            for item in self.loggers:
                item.end(scalars(results), figures)


def _table_name(config: TrainConfig) -> str:
    part = config.error_table
    return part if isinstance(part, str) else str(part["type"])
