"""Options of a run as a whole, and of the data it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fpmace.config.option import option

PbcMethod = Literal["auto", "realspace", "pbc", "slab", "molecule_in_box", "mixed_periodic"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run."""

    config: tuple[str, ...] = option(
        (),
        "YAML files with any of these options; later files win, flags win over files",
        action=True,
        repeatable=True,
    )
    name: str = option("fpmace", "name of the run; begins the name of every file it writes")
    work_dir: str = option(".", "folder for model, checkpoints, logs, metrics and plots")
    plugins: tuple[str, ...] = option(
        (),
        "Python files or modules to import first; parts they register can be named here",
        repeatable=True,
        example="my_blocks.py",
    )
    seed: int = option(123, "seed of weights, splits and shuffling", minimum=0)
    device: str = option("cpu", "where to compute: cpu, cuda or cuda:N")
    default_dtype: Literal["float64", "float32"] = option(
        "float64", "precision of the model and of the data"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = option(
        "INFO", "least important message to show; DEBUG shows the loss terms of each batch"
    )
    plot: bool = option(False, "draw loss, error and parity plots at the end")
    save_cpu: bool = option(False, "save the model's weights as CPU tensors")
    restart_latest: bool = option(False, "go on from the last checkpoint of this run", action=True)
    dry_run: bool = option(
        False,
        "check everything, build the model, print data summary and memory estimate, stop",
        action=True,
    )
    list_blocks: bool = option(
        False, "print every registered part with its options, and stop", action=True
    )


@dataclass(frozen=True, kw_only=True)
class DataFileOptions:
    """Data."""

    train_file: str | None = option(
        None, "training data: .xyz, .h5 or a folder of .h5 shards (required)"
    )
    valid_file: str | None = option(None, "validation data, in one of the same forms")
    valid_fraction: float | None = option(
        None,
        "part of the training data to validate on, without valid_file (0.1 if neither is given)",
        above=0.0,
        below=1.0,
    )
    split_by: str | None = option(
        None,
        "info key (such as traj) whose groups stay together when valid_fraction splits the data",
    )
    test_file: str | None = option(None, "data to evaluate the final model on")
    statistics_file: str | None = option(
        None, "statistics.json of the preprocessing; found beside .h5 data by itself"
    )
    heads: dict[str, Any] = option(
        {},
        "which key each property is read from: {name: {info_keys: {...}, arrays_keys: {...}}}",
        example="{Default: {info_keys: {energy: REF_energy}, arrays_keys: {forces: REF_forces}}}",
    )
    config_type_weights: dict[str, float] | None = option(
        None, "factor on the weight of configurations by config_type", example="{Default: 1.0}"
    )
    keep_isolated_atoms: bool = option(
        False, "train on IsolatedAtom configurations too, not only read E0s from them"
    )
    E0s: str | dict[int, float] = option(
        "average",
        "atomic energies: IsolatedAtom, average (least squares), foundation (those of "
        "foundation_model) or {atomic number: eV}",
        example="{1: -13.6, 8: -2040.0}",
    )
    allow_low_density_pbc: bool = option(
        False, "accept fully periodic boxes of any volume per atom"
    )
    low_density_pbc_max_volume_per_atom: float = option(
        100.0, "Angstrom^3; above it a fully periodic box is refused", above=0.0
    )
    min_distance: float = option(
        0.2, "Angstrom; configurations with atoms closer than this are refused", minimum=0.0
    )
    num_threads: int | None = option(
        None,
        "threads that torch uses on the CPU; 1 is often fastest for small models",
        minimum=1,
    )
    num_workers: int = option(0, "processes that read data beside the training", minimum=0)
