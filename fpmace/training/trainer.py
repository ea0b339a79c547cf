"""The one training loop, for every stage, model and training mode."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch_ema import ExponentialMovingAverage

from fpmace.annotations import plain
from fpmace.data.batch import Batch
from fpmace.distributed.process import ALONE, Process
from fpmace.distributed.voice import PeerError
from fpmace.errors import ModelFileError, TrainingError
from fpmace.metrics.errors import Quantity
from fpmace.metrics.scf_summary import ScfSummary, merged
from fpmace.models.base import Model
from fpmace.registry import PartConfig, build
from fpmace.training import random_state
from fpmace.training.checkpoint import Checkpoint, CheckpointStore, Progress
from fpmace.training.ema import evaluation_weights, make_average
from fpmace.training.epoch_report import epoch_line, epoch_record
from fpmace.training.evaluate import Evaluation, Predict, TermAverages, evaluate
from fpmace.training.freezing import frozen
from fpmace.training.optimizers import use_training_weights
from fpmace.training.parameter_groups import WeightDecays, make_parameter_groups
from fpmace.training.progress import progress_bar
from fpmace.training.recorder import MetricsRecorder
from fpmace.training.schedulers import (
    RateOptions,
    Scheduler,
    after_epoch,
    after_validation,
    make_scheduler,
)
from fpmace.training.stages import Stage, check_schedule
from fpmace.training.step import GradientStep, report_unreached, step_line
from fpmace.training.unconverged import (
    check_epoch,
    check_stage,
    report_nonfinite,
    report_skipped,
)

logger = logging.getLogger(__name__)


class Loader(Protocol):
    """Batches in an order that depends on the epoch only."""

    def set_epoch(self, epoch: int) -> None: ...

    def steps(self, accumulate: int) -> Iterable[list[Batch]]:
        """Groups of batches, as many in every process; the last ones may be short or empty."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class TrainerOptions:
    """How to train, apart from what a stage says.

    Attributes:
        optimizer: registered optimizer and its options.
        ema_decay: decay of the averaged weights; None: no averaging.
        clip_grad: largest norm of the gradient; None: no clipping.
        patience: validations without improvement that end a stage; None: never.
        eval_interval: epochs between validations (and checkpoints).
        accumulate: batches of each process whose gradients make up one step.
        seed: of the random numbers of each step.
        device: where to compute.
    """

    optimizer: PartConfig = "adam"
    decays: WeightDecays = field(default_factory=WeightDecays)
    rates: RateOptions = field(default_factory=RateOptions)
    ema_decay: float | None = 0.99
    clip_grad: float | None = 10.0
    patience: int | None = None
    eval_interval: int = 1
    accumulate: int = 1
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Trainer:
    """Runs a schedule; afterwards the model holds the best weights of the last stage.

    Args:
        model: trained in place.
        quick_loader: part of the validation data, looked at in epochs without a validation.
        quantities: errors measured in each validation.
        config: resolved configuration, kept in checkpoints.
        predict: see ``fpmace.observables.predict.predict``.
        process: which of several processes this is; ``store`` and ``recorder`` are of the first.
    """

    def __init__(
        self,
        model: Model,
        *,
        stages: Sequence[Stage],
        train_loader: Loader,
        valid_loader: Loader,
        quick_loader: Loader | None = None,
        options: TrainerOptions,
        quantities: Sequence[Quantity],
        store: CheckpointStore,
        recorder: MetricsRecorder,
        config: Mapping[str, object],
        predict: Predict,
        process: Process = ALONE,
    ) -> None:
        check_schedule(stages)
        self.model = model
        self.stages = list(stages)
        self.train_loader, self.valid_loader = train_loader, valid_loader
        self.quick_loader = quick_loader
        self.options = options
        self.quantities = list(quantities)
        self.store, self.recorder = store, recorder
        self.config = dict(config)
        self.predict, self.process = predict, process
        self.progress = Progress()
        self._unsaved: Checkpoint | None = None
        """The last epoch that was finished, where its checkpoint is not due yet."""
        self.average: ExponentialMovingAverage | None = None
        if options.ema_decay is not None:
            self.average = make_average(model, options.ema_decay)

    def run(self, *, resume: bool = False) -> Progress:
        """Train all stages.

        Args:
            resume: go on from the latest checkpoint, if there is one.

        Raises:
            TrainingError: if the loss becomes non-finite.
            ModelFileError: if the checkpoint to resume from is damaged or does not fit.
        """
        self.store.remove_leftovers()
        checkpoint = self.process.from_first(self.store.latest) if resume else None
        if checkpoint is None:
            if resume:
                logger.info("no checkpoint of '%s' found: starting from epoch 0", self.store.name)
            self.store.set_aside()
            self.recorder.begin(after_epoch=-1)
        else:
            self._restore(checkpoint)
        try:
            for stage in self.stages[self.progress.stage :]:
                groups = {group.name for group in self.model.parameter_groups()}
                with frozen(self.model, stage.freeze):
                    self._run_stage(stage, checkpoint, groups)
                checkpoint = None
        except (KeyboardInterrupt, PeerError):
            if self._unsaved is not None:
                self.store.save(self._unsaved)
            logger.warning("stopped; --restart_latest goes on after the last checkpoint")
            raise
        best = self.process.from_first(lambda: self.store.load_best(self.stages[-1].index))
        if best is not None:
            self.model.load_state_dict(best)
        return self.progress

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.progress = checkpoint.progress
        try:
            self.model.load_state_dict(checkpoint.model)
            if self.average is not None and checkpoint.ema is not None:
                self.average.load_state_dict(checkpoint.ema)
        except (RuntimeError, KeyError, ValueError) as error:
            raise ModelFileError(
                f"{self.store.path(self.progress.epoch)}: does not fit this model "
                f"({str(error).splitlines()[0]}); resume with the configuration of the first run"
            ) from error
        if (self.average is None) != (checkpoint.ema is None):
            raise ModelFileError(
                f"{self.store.path(self.progress.epoch)}: was written "
                f"{'with' if checkpoint.ema else 'without'} averaged weights; "
                "resume with the same --ema"
            )
        self.recorder.begin(after_epoch=self.progress.epoch)
        logger.info("resuming after epoch %d", self.progress.epoch)
        before, now = self.progress.world_size, self.process.world_size
        if before != now:
            logger.warning(
                "the checkpoint was written by %d process(es), and %d go on: batch_size and "
                "accumulate are per process, so a step holds %.3g times as many configurations",
                before,
                now,
                now / before,
            )

    def _run_stage(self, stage: Stage, checkpoint: Checkpoint | None, known: set[str]) -> None:
        groups = make_parameter_groups(
            self.model,
            lr=stage.lr,
            group_lrs=stage.group_lrs,
            decays=self.options.decays,
            idle=known,
        )
        optimizer = build(
            "optimizer",
            self.options.optimizer,
            where="optimizer",
            parameter_groups=groups,
            lr=stage.lr,
        )
        use_training_weights(optimizer)
        n_epochs = stage.end - stage.start + 1
        scheduler = make_scheduler(optimizer, self.options.rates, n_epochs)
        if checkpoint is not None:
            if self.progress.stage_done:
                random_state.restore(checkpoint.random)
                self._next_stage()
                return
            optimizer.load_state_dict(checkpoint.optimizer)
            scheduler.load_state_dict(checkpoint.scheduler)
            random_state.restore(checkpoint.random)
        logger.info(
            "stage %d '%s': epochs %d to %d, learning rate %g, losses %s",
            stage.index,
            stage.name,
            stage.start,
            stage.end,
            stage.lr,
            ", ".join(f"{term.name} x {term.weight:g}" for term in stage.losses.terms),
        )
        self._epochs(stage, optimizer, scheduler)
        check_stage(stage, self.progress)
        self._next_stage()

    def _next_stage(self) -> None:
        done = self.progress
        self.progress = Progress(done.stage + 1, done.epoch, done.step)

    def _epochs(
        self, stage: Stage, optimizer: torch.optim.Optimizer, scheduler: Scheduler
    ) -> None:
        gradient = GradientStep(
            self.model,
            stage,
            predict=self.predict,
            clip_grad=self.options.clip_grad,
            accumulate=self.options.accumulate,
            process=self.process,
        )
        for epoch in range(max(stage.start, self.progress.epoch + 1), stage.end + 1):
            started = time.perf_counter()
            train, scf = self._train_epoch(stage, epoch, gradient, optimizer)
            after_epoch(scheduler)
            self.progress.epoch = epoch
            due = (epoch - stage.start + 1) % self.options.eval_interval == 0
            valid = quick = None
            if due or epoch == stage.end:
                valid = self._validate(stage, optimizer, self.valid_loader)
                after_validation(scheduler, valid.loss)
                self._note_improvement(stage, valid, optimizer)
            elif self.quick_loader is not None:
                quick = self._validate(stage, optimizer, self.quick_loader)
            record = epoch_record(stage, self.progress, train, scf, valid, optimizer, quick)
            record["seconds"] = time.perf_counter() - started
            self.recorder.write(record)
            logger.info("%s", epoch_line(record, self.stages[-1].end))
            if valid is None:
                self._unsaved = self._checkpoint(optimizer, scheduler).copy()
            else:
                self.progress.stage_done = self._out_of_patience()
                self.store.save(self._checkpoint(optimizer, scheduler))
                self._unsaved = None
                if self.progress.stage_done:
                    logger.info(
                        "stage '%s' ends early: no lower validation loss since epoch %s",
                        stage.name,
                        self.progress.best_epoch,
                    )
                    return

    def _train_epoch(
        self, stage: Stage, epoch: int, gradient: GradientStep, optimizer: torch.optim.Optimizer
    ) -> tuple[TermAverages, ScfSummary]:
        self.model.train()
        self.train_loader.set_epoch(epoch)
        averages, scf = TermAverages(stage.losses), ScfSummary()
        groups = self.train_loader.steps(self.options.accumulate)
        bar = progress_bar(groups, f"{stage.name} epoch {epoch} of {self.stages[-1].end}")
        for number, batches in enumerate(bar):
            result = gradient(
                [batch.to(self.options.device) for batch in batches],
                place=f"stage {stage.index} '{stage.name}', epoch {epoch}, batch {number}",
                seed=random_state.step_seed(self.options.seed, epoch, number),
            )
            if result.n_used > 0:
                self._step(optimizer)
            else:
                report_skipped(epoch, number, batches)
            averages.add(result.averages, result.n_graphs, result.n_used)
            for found in result.scf:
                scf.add(found)
            self.progress.n_graphs += result.n_graphs
            self.progress.n_used += result.n_used
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("epoch %d batch %d: %s", epoch, number, step_line(result, stage))
        check_epoch(stage, epoch, averages)
        return averages, merged(self.process.gather(scf))

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.progress.n_used == 0:
            report_unreached(self.model)
        optimizer.step()
        if self.average is not None:
            self.average.update()
        self.progress.step += 1

    def _validate(
        self, stage: Stage, optimizer: torch.optim.Optimizer, loader: Loader
    ) -> Evaluation:
        self.model.eval()
        self._check_weights()
        with evaluation_weights(optimizer, self.average):
            return evaluate(
                self.model,
                progress_bar(loader, "validation"),
                predict=self.predict,
                mode=stage.valid_mode,
                device=self.options.device,
                quantities=self.quantities,
                losses=stage.losses,
                process=self.process,
            )

    def _check_weights(self) -> None:
        """Refuse to go on where the processes have drifted apart."""
        sums = [float(item.detach().double().sum()) for item in self.model.parameters()]
        if len(set(map(repr, self.process.gather(sums)))) > 1:
            raise TrainingError(
                f"epoch {self.progress.epoch}: the weights differ between the processes; run all "
                "of them on the same kind of machine and with the same versions"
            )

    def _note_improvement(
        self, stage: Stage, valid: Evaluation, optimizer: torch.optim.Optimizer
    ) -> None:
        best, loss = self.progress.best_loss, valid.loss
        report_nonfinite(stage, self.progress, valid)
        if math.isfinite(loss) and (best is None or loss < best):
            self.progress.best_loss = loss
            self.progress.best_epoch = self.progress.epoch
            self.progress.waited = 0
            with evaluation_weights(optimizer, self.average):
                self.store.save_best(stage.index, self.model)
        else:
            self.progress.waited += 1

    def _out_of_patience(self) -> bool:
        return self.options.patience is not None and self.progress.waited >= self.options.patience

    def _checkpoint(self, optimizer: torch.optim.Optimizer, scheduler: Scheduler) -> Checkpoint:
        return Checkpoint(
            config=self.config,
            progress=replace(self.progress, world_size=self.process.world_size),
            model=self.model.state_dict(),
            ema=None if self.average is None else self.average.state_dict(),
            optimizer=optimizer.state_dict(),
            scheduler=scheduler.state_dict(),
            random=random_state.capture(),
            model_config=plain(getattr(self.model, "config", {})),
        )
