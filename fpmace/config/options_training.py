"""Options of the training: schedule, losses, optimizer, evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fpmace.annotations import Bounds, Count, Doc, Options, Positive
from fpmace.config.option import Role
from fpmace.registry import Part, PartConfig

Rate = Annotated[float, Bounds(minimum=0.0)]


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Training schedule and losses."""

    train_schedule: Annotated[
        dict[int, Any],
        Doc(
            "stages in order: {0: {name, start, end, loss, lr, fixed_point_training_options}, "
            "1: ...}"
        ),
    ] = field(default_factory=dict)
    max_num_epochs: Annotated[Count, Doc("epochs, without a train_schedule")] = 100
    loss: Annotated[
        Options,
        Doc("losses with a weight or a mapping of options, for stages that name none"),
    ] = field(default_factory=lambda: {"energy_per_atom": 1.0, "forces": 100.0})
    fixed_point_training_options: Annotated[
        Options,
        Doc("training mode of stages that name none: {mode, scf: {...}}"),
        Role(needs="solves_self_consistency"),
    ] = field(default_factory=lambda: {"mode": "direct"})
    compute_stress: Annotated[
        bool, Doc("compute stress and virials for periodic configurations")
    ] = False
    batch_size: Annotated[Count, Doc("configurations per training batch of each process")] = 8
    batch_budget: Annotated[
        Options,
        Doc(
            "what a batch of a process may hold in place of batch_size and valid_batch_size: "
            "{atoms: N}, {edges: N}, or {memory: GiB} kept for the backward pass; --dry_run "
            "proposes one",
            "{edges: 20000}",
        ),
    ] = field(default_factory=dict)
    accumulate: Annotated[
        Count,
        Doc("batches whose gradients make up one step, equal to a batch that many times as large"),
    ] = 1
    valid_batch_size: Annotated[
        Count | None,
        Doc("configurations per validation batch; batch_size if not given"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimizer."""

    optimizer: Annotated[PartConfig, Part("optimizer"), Doc("optimizer")] = "adam"
    amsgrad: Annotated[bool, Doc("AMSGrad variant of adam and adamw")] = True
    lr: Annotated[Positive, Doc("learning rate of stages that name none")] = 0.01
    embedding_lr: Annotated[Rate | None, Doc("learning rate of the embeddings")] = None
    interactions_lr: Annotated[Rate | None, Doc("learning rate of the interactions")] = None
    products_lr: Annotated[Rate | None, Doc("learning rate of the product bases")] = None
    readouts_lr: Annotated[Rate | None, Doc("learning rate of the energy readouts")] = None
    field_block_lr: Annotated[
        Rate | None,
        Doc("learning rate of the update rule"),
        Role(needs="solves_self_consistency"),
    ] = None
    local_charges_lr: Annotated[
        Rate | None,
        Doc("learning rate of the local density readouts"),
        Role(needs="has_density"),
    ] = None
    local_electron_energy_lr: Annotated[
        Rate | None,
        Doc("learning rate of the field-energy readout"),
        Role(needs="solves_self_consistency"),
    ] = None
    other_lr: Annotated[Rate | None, Doc("learning rate of all other parameters")] = None
    freeze: Annotated[
        tuple[str, ...],
        Doc(
            "parts that are not trained, in stages that name none: groups (embedding, ...), "
            "backbone, layer.K, or blocks by name; the table of parameters in the log has all",
            "[backbone, readouts.0]",
        ),
        Role(repeatable=True),
    ] = ()
    weight_decay: Annotated[
        float, Bounds(minimum=0.0), Doc("weight decay of products and linear maps of interactions")
    ] = 5e-7
    field_block_weight_decay: Annotated[
        float,
        Bounds(minimum=0.0),
        Doc("weight decay of update rule and field readout"),
        Role(needs="solves_self_consistency"),
    ] = 0.0
    local_charges_weight_decay: Annotated[
        float,
        Bounds(minimum=0.0),
        Doc("weight decay of the local density readouts"),
        Role(needs="has_density"),
    ] = 0.0
    embedding_weight_decay: Annotated[
        Rate | None, Doc("weight decay of the embeddings; none if not given")
    ] = None
    interactions_weight_decay: Annotated[
        Rate | None, Doc("that of the linear maps of interactions; weight_decay if not given")
    ] = None
    products_weight_decay: Annotated[
        Rate | None, Doc("that of the product bases; weight_decay if not given")
    ] = None
    readouts_weight_decay: Annotated[
        Rate | None, Doc("that of the energy readouts; none if not given")
    ] = None
    local_electron_energy_weight_decay: Annotated[
        Rate | None,
        Doc("that of the field-energy readout; field_block_weight_decay if not given"),
        Role(needs="solves_self_consistency"),
    ] = None
    other_weight_decay: Annotated[
        Rate | None, Doc("that of all other parameters; weight_decay if not given")
    ] = None
    clip_grad: Annotated[
        Positive | None,
        Doc("largest norm of the gradient; None: no clipping"),
    ] = 10.0
    ema: Annotated[bool, Doc("validate and save with exponentially averaged weights")] = True
    ema_decay: Annotated[float, Bounds(minimum=0.0, below=1.0), Doc("decay of the average")] = 0.99
    scheduler: Annotated[
        Literal["ReduceLROnPlateau", "ExponentialLR", "CosineAnnealingLR"],
        Doc(
            "how the learning rate falls within a stage: at plateaus, by a factor an epoch, or "
            "along a cosine to the stage's end"
        ),
    ] = "ReduceLROnPlateau"
    lr_factor: Annotated[
        float, Bounds(above=0.0, below=1.0), Doc("factor on the learning rate at a plateau")
    ] = 0.8
    scheduler_patience: Annotated[
        int,
        Bounds(minimum=0),
        Doc("validations without improvement before the learning rate falls"),
    ] = 50
    lr_scheduler_gamma: Annotated[
        Positive, Doc("factor on the learning rate per epoch (ExponentialLR)")
    ] = 0.9993
    patience: Annotated[
        Count | None,
        Doc("end a stage after this many validations without improvement; None: never"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Validation and evaluation."""

    eval_interval: Annotated[Count, Doc("epochs between validations")] = 1
    quick_errors: Annotated[
        int,
        Bounds(minimum=0),
        Doc(
            "errors of epochs without a validation: of so many structures of valid_file, a tenth "
            "of the number of training structures at most; 0: none"
        ),
    ] = 50
    valid_mode: Annotated[
        Literal["stage", "scf"],
        Doc("validate as the stage trains, or by self-consistent solutions"),
        Role(needs="solves_self_consistency"),
    ] = "stage"
    scf_options: Annotated[
        Options,
        Doc(
            "self-consistency settings of evaluations (and of validations with valid_mode scf)",
            "{num_scf_steps: 50, mixing_parameter: 0.3}",
        ),
        Role(needs="solves_self_consistency"),
    ] = field(default_factory=dict)
    error_table: Annotated[
        PartConfig, Part("error_table"), Doc("which errors the tables show")
    ] = "PerAtomRMSE"
