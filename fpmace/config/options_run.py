"""Options of a run as a whole, and of the data it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from fpmace.annotations import Bounds, Count, Doc, Options, Positive, Unit
from fpmace.config.option import Role
from fpmace.kernels.choice import Kernels
from fpmace.registry import Part, PartConfig

Fraction = Annotated[float, Bounds(above=0.0, below=1.0)]
Weight = Annotated[float, Bounds(minimum=0.0)]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run."""

    config: Annotated[
        tuple[str, ...],
        Doc("YAML files with any of these options; later files win, flags win over files"),
        Role(action=True, repeatable=True),
    ] = field(default=(), compare=False)
    name: Annotated[str, Doc("name of the run; begins the name of every file it writes")] = (
        "fpmace"
    )
    work_dir: Annotated[str, Doc("folder for model, checkpoints, logs, metrics and plots")] = "."
    plugins: Annotated[
        tuple[str, ...],
        Doc(
            "Python files or modules to import first; parts they register can be named here",
            "my_blocks.py",
        ),
        Role(repeatable=True),
    ] = ()
    seed: Annotated[int, Bounds(minimum=0), Doc("seed of weights, splits and shuffling")] = 123
    device: Annotated[str, Doc("where to compute: cpu, cuda or cuda:N")] = "cpu"
    default_dtype: Annotated[
        Literal["float64", "float32"], Doc("precision of the model and of the data")
    ] = "float64"
    kernels: Kernels = "auto"
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"],
        Doc("least important message to show; DEBUG shows the loss terms of each batch"),
    ] = "INFO"
    plot: Annotated[bool, Doc("draw loss, error and parity plots at the end")] = False
    report: Annotated[bool, Doc("write a page on the run at the end (`NAME_report.html`)")] = True
    loggers: Annotated[
        tuple[PartConfig, ...],
        Part("logger"),
        Doc(
            "where numbers and plots go beside the metrics file: tensorboard, wandb, or your own",
            "[tensorboard, wandb]",
        ),
        Role(repeatable=True),
    ] = ()
    save_cpu: Annotated[bool, Doc("save the model's weights as CPU tensors")] = False
    restart_latest: Annotated[
        bool, Doc("go on from the last checkpoint of this run"), Role(action=True)
    ] = field(default=False, compare=False)
    dry_run: Annotated[
        bool,
        Doc("check everything, build the model, print data summary and memory estimate, stop"),
        Role(action=True),
    ] = field(default=False, compare=False)
    process_timeout: Annotated[
        Positive,
        Unit("s"),
        Doc("time without a sign of life after which one of several processes is given up"),
    ] = field(default=30.0, compare=False)
    list_blocks: Annotated[
        bool, Doc("print every registered part with its options, and stop"), Role(action=True)
    ] = field(default=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class DataFileOptions:
    """Data."""

    train_file: Annotated[
        str | None, Doc("training data: .xyz, .h5 or a folder of .h5 shards (required)")
    ] = None
    valid_file: Annotated[str | None, Doc("validation data, in one of the same forms")] = None
    valid_fraction: Annotated[
        Fraction | None,
        Doc(
            "part of the training data to validate on, without valid_file (0.1 if neither is "
            "given)"
        ),
    ] = None
    split_by: Annotated[
        str | None,
        Doc(
            "info key (such as traj) whose groups stay together when valid_fraction splits the "
            "data"
        ),
    ] = None
    test_file: Annotated[str | None, Doc("data to evaluate the final model on")] = None
    statistics_file: Annotated[
        str | None, Doc("statistics.json of the preprocessing; found beside .h5 data by itself")
    ] = None
    heads: Annotated[
        Options,
        Doc(
            "heads of the model by name, each with the keys its labels are read from (info_keys, "
            "arrays_keys) and, with several, files of its own (train_file, valid_file, "
            "test_file), E0s and a weight; in files of several heads, head=NAME says whose a "
            "configuration is",
            "{Default: {info_keys: {energy: REF_energy}, arrays_keys: {forces: REF_forces}}}",
        ),
    ] = field(default_factory=dict)
    config_type_weights: Annotated[
        dict[str, Weight] | None,
        Doc("factor on the weight of configurations by config_type", "{Default: 1.0}"),
    ] = None
    default_total_charge: Annotated[
        float | None,
        Unit("e"),
        Doc("total charge of configurations that give none, for models that must be told"),
    ] = None
    default_total_spin: Annotated[
        Annotated[float, Bounds(minimum=1.0)] | None,
        Doc("multiplicity 2S + 1 of configurations that give none, for models that must be told"),
    ] = None
    keep_isolated_atoms: Annotated[
        bool, Doc("train on IsolatedAtom configurations too, not only read E0s from them")
    ] = False
    E0s: Annotated[
        str | dict[int, float],
        Doc(
            "atomic energies: IsolatedAtom, average (least squares), foundation (those of "
            "foundation_model), estimated (those, corrected by least squares for what the "
            "foundation model leaves of the energies; the default with one) or "
            "{atomic number: eV}",
            "{1: -13.6, 8: -2040.0}",
        ),
    ] = "average"
    allow_low_density_pbc: Annotated[
        bool, Doc("accept fully periodic boxes of any volume per atom")
    ] = False
    low_density_pbc_max_volume_per_atom: Annotated[
        Positive,
        Unit("Angstrom^3"),
        Doc("volume above which a fully periodic box is refused"),
    ] = 100.0
    min_distance: Annotated[
        float,
        Bounds(minimum=0.0),
        Unit("Angstrom"),
        Doc("configurations with atoms closer than this are refused"),
    ] = 0.2
    num_threads: Annotated[
        Count | None,
        Doc("threads that torch uses on the CPU; 1 is often fastest for small models"),
    ] = None
    num_workers: Annotated[
        int, Bounds(minimum=0), Doc("processes that read data beside the training")
    ] = 0


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model."""

    model: Annotated[
        PartConfig,
        Part("model"),
        Doc(
            "the model to train, by name or as a mapping with its options; the flat options "
            "below are another way to give those",
            "{type: FixedPoint, r_max: 5.0}",
        ),
    ] = "FixedPoint"
    foundation_model: Annotated[
        str | None,
        Doc(
            "model file, of fpmace or mace-torch, that the training starts from: options and "
            "weights of its backbone and energy readouts, for the elements of the data; a model "
            "of the same type takes all weights"
        ),
    ] = None
    foundation_head: Annotated[
        str | None, Doc("head of the foundation model that heads start from, if it has several")
    ] = None
    multiheads_finetuning: Annotated[
        bool,
        Doc(
            "fine-tune the foundation_model with a second head, pt_head, that replays data it "
            "was trained on"
        ),
    ] = False
    pt_train_file: Annotated[
        str | None, Doc("data to replay: the training data of the foundation model, or its like")
    ] = None
    num_samples_pt: Annotated[Count, Doc("configurations to replay at most")] = 10000
    weight_pt_head: Annotated[
        Weight, Doc("factor on the weight of the configurations that are replayed")
    ] = 1.0
    subselect_pt: Annotated[
        Literal["fps", "random"],
        Doc(
            "how they are chosen: fps, farthest points in the space of the foundation model's "
            "features; or random; both by the seed"
        ),
    ] = "fps"
    filter_type_pt: Annotated[
        Literal["combinations", "inclusive", "exclusive", "none"],
        Doc(
            "what is replayed has: no elements but those of the other data (combinations), all "
            "of those (inclusive), exactly those (exclusive), or any (none)"
        ),
    ] = "combinations"
    init_from: Annotated[
        str | None,
        Doc(
            "model file or checkpoint that the training starts from, with all its options and "
            "weights; options of the model that are given differently are named and passed over"
        ),
    ] = None
