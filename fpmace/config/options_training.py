"""Options of the training: schedule, losses, optimizer, evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fpmace.config.option import option
from fpmace.config.options_model import PartValue


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Training schedule and losses."""

    train_schedule: dict[int, Any] = option(
        {},
        "stages in order: {0: {name, start, end, loss, lr, fixed_point_training_options}, 1: ...}",
    )
    max_num_epochs: int = option(100, "epochs, without a train_schedule", minimum=1)
    loss: dict[str, Any] = option(
        {"energy_per_atom": 1.0, "forces": 100.0},
        "losses with a weight or a mapping of options, for stages that name none",
    )
    fixed_point_training_options: dict[str, Any] = option(
        {"mode": "direct"},
        "training mode of stages that name none: {mode, scf: {...}}",
        density_only=True,
    )
    compute_stress: bool = option(False, "compute stress and virials for periodic configurations")
    batch_size: int = option(8, "configurations per training batch", minimum=1)
    valid_batch_size: int | None = option(
        None, "configurations per validation batch; batch_size if not given", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimizer."""

    optimizer: PartValue = option("adam", "optimizer", part="optimizer")
    amsgrad: bool = option(True, "AMSGrad variant of adam and adamw")
    lr: float = option(0.01, "learning rate of stages that name none", above=0.0)
    embedding_lr: float | None = option(None, "learning rate of the embeddings", minimum=0.0)
    interactions_lr: float | None = option(None, "learning rate of the interactions", minimum=0.0)
    products_lr: float | None = option(None, "learning rate of the product bases", minimum=0.0)
    readouts_lr: float | None = option(None, "learning rate of the energy readouts", minimum=0.0)
    field_block_lr: float | None = option(
        None, "learning rate of the update rule", minimum=0.0, density_only=True
    )
    local_charges_lr: float | None = option(
        None, "learning rate of the local density readouts", minimum=0.0, density_only=True
    )
    local_electron_energy_lr: float | None = option(
        None, "learning rate of the field-energy readout", minimum=0.0, density_only=True
    )
    other_lr: float | None = option(None, "learning rate of all other parameters", minimum=0.0)
    weight_decay: float = option(
        5e-7, "weight decay of products and linear maps of interactions", minimum=0.0
    )
    field_block_weight_decay: float = option(
        0.0, "weight decay of update rule and field readout", minimum=0.0, density_only=True
    )
    local_charges_weight_decay: float = option(
        0.0, "weight decay of the local density readouts", minimum=0.0, density_only=True
    )
    clip_grad: float | None = option(
        10.0, "largest norm of the gradient; None: no clipping", above=0.0
    )
    ema: bool = option(True, "validate and save with exponentially averaged weights")
    ema_decay: float = option(0.99, "decay of the average", minimum=0.0, below=1.0)
    scheduler: Literal["ReduceLROnPlateau", "ExponentialLR"] = option(
        "ReduceLROnPlateau", "how the learning rate falls within a stage"
    )
    lr_factor: float = option(
        0.8, "factor on the learning rate at a plateau", above=0.0, below=1.0
    )
    scheduler_patience: int = option(
        50, "validations without improvement before the learning rate falls", minimum=0
    )
    lr_scheduler_gamma: float = option(
        0.9993, "factor on the learning rate per epoch (ExponentialLR)", above=0.0
    )
    patience: int | None = option(
        None,
        "end a stage after this many validations without improvement; None: never",
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Validation and evaluation."""

    eval_interval: int = option(1, "epochs between validations", minimum=1)
    valid_mode: Literal["stage", "scf"] = option(
        "stage",
        "validate as the stage trains, or by self-consistent solutions",
        density_only=True,
    )
    scf_options: dict[str, Any] = option(
        {},
        "self-consistency settings of evaluations (and of validations with valid_mode scf)",
        density_only=True,
        example="{num_scf_steps: 50, mixing_parameter: 0.3}",
    )
    error_table: PartValue = option(
        "PerAtomRMSE", "which errors the tables show", part="error_table"
    )
