"""The data sets of a run, their statistics, and whether they can serve the schedule."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ase.data import chemical_symbols

from fpmace.annotations import Values
from fpmace.config.replay import REPLAY_HEAD
from fpmace.config.schema import TrainConfig, model_class
from fpmace.data.dataset import HDF5_SUFFIXES, StructureDataset, open_dataset
from fpmace.data.heads import OF_FOUNDATION, parse_heads
from fpmace.data.info import check_config_types
from fpmace.data.joined import JoinedDataset
from fpmace.data.keys import PROPERTIES, KeyMapping, label_counts, plain_names
from fpmace.data.options import DataOptions, chosen_defaults
from fpmace.data.split import DEFAULT_VALID_FRACTION, split_dataset
from fpmace.data.statistics import (
    AtomicEnergies,
    DatasetStatistics,
    compute_statistics,
    find_atomic_energies,
    statistics_by_head,
)
from fpmace.errors import DataError
from fpmace.observables.predict import DIPOLE_DERIVATIVES
from fpmace.training.foundation import foundation_energies
from fpmace.training.losses import check_losses
from fpmace.training.replay import selected
from fpmace.training.stages import Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Datasets:
    """The splits of a run."""

    train: StructureDataset
    valid: StructureDataset
    test: StructureDataset | None

    def named(self) -> dict[str, StructureDataset]:
        """The splits there are, by name."""
        found = {"train": self.train, "valid": self.valid}
        return found if self.test is None else {**found, "test": self.test}


def data_options(config: TrainConfig) -> DataOptions:
    """How the files are read and checked."""
    heads = parse_heads(config.heads)
    return DataOptions(
        keys=heads[0].keys,
        heads=heads if len(heads) > 1 else (),
        multipoles_max_l=config.atomic_multipoles_max_l or 0,
        config_type_weights=config.config_type_weights or None,
        pbc_handling=config.electrostatic_pbc_method,
        allow_low_density_pbc=config.allow_low_density_pbc,
        low_density_pbc_max_volume_per_atom=config.low_density_pbc_max_volume_per_atom,
        min_distance=config.min_distance,
        split_by=config.split_by,
        keep_isolated_atoms=config.keep_isolated_atoms,
        required=tuple(sorted(model_class(config.model_name).required_inputs)),
        defaults=chosen_defaults(config.default_total_charge, config.default_total_spin),
    )


def open_datasets(config: TrainConfig) -> Datasets:
    """Open, split and check the files of a run.

    Raises:
        DataError, ConfigError: a file cannot be read, fails a check, has foreign elements, or a
            head has nothing to train on.
    """
    options = data_options(config)
    train = _opened("train_file", config, options)
    assert train is not None
    check_config_types(train.info, config.config_type_weights)
    for head in options.heads:
        if head.name not in train.info.heads:
            raise DataError(
                f"{train.path}: no configuration belongs to the head '{head.name}' "
                f"(heads found: {', '.join(train.info.heads)})"
            )
    others = dataclasses.replace(options, elements=tuple(train.info.atomic_numbers), split_by=None)
    valid = _opened("valid_file", config, others)
    fraction = config.valid_fraction or DEFAULT_VALID_FRACTION
    if isinstance(train, JoinedDataset) and config.valid_file is None:
        train, valid = _split_heads(train, valid, fraction, config.seed)
    elif valid is None:
        train, valid = split_dataset(train, fraction, config.seed)
    assert valid is not None
    _check_elements(train, valid)
    return Datasets(train, valid, _opened("test_file", config, others))


def _opened(which: str, config: TrainConfig, options: DataOptions) -> StructureDataset | None:
    """The file of the run, else those that heads name for themselves; None without any."""
    path = getattr(config, which)
    if path is not None:
        return open_dataset(path, config.r_max, options)
    own = {head.name: getattr(head, which) for head in options.heads}
    parts = {
        name: open_dataset(file, config.r_max, options.for_head(name))
        for name, file in own.items()
        if file is not None
    }
    if which == "train_file" and config.multiheads_finetuning:
        others = [part.info for name, part in parts.items() if name != REPLAY_HEAD]
        elements = {number for info in others for number in info.atomic_numbers}
        parts[REPLAY_HEAD] = selected(config, parts[REPLAY_HEAD], elements)
    return JoinedDataset(parts) if parts else None


def _split_heads(
    train: JoinedDataset, valid: StructureDataset | None, fraction: float, seed: int
) -> tuple[StructureDataset, StructureDataset]:
    """Validation data of each head: its own file, else a part of its training data."""
    kept, held = dict(train.parts), {}
    given = valid.parts if isinstance(valid, JoinedDataset) else {}
    for name, part in train.parts.items():
        if name in given:
            held[name] = given[name]
        else:
            kept[name], held[name] = split_dataset(part, fraction, seed)
    return JoinedDataset(kept), JoinedDataset(held)


def _check_elements(train: StructureDataset, valid: StructureDataset) -> None:
    foreign = set(valid.info.atomic_numbers) - set(train.info.atomic_numbers)
    if foreign:
        names = ", ".join(chemical_symbols[number] for number in sorted(foreign))
        raise DataError(
            f"{train.path}: the split left {names} to the validation part alone; use another "
            "seed or valid_fraction, or give a valid_file"
        )


def training_statistics(
    config: TrainConfig, origins: Mapping[str, str], train: StructureDataset
) -> DatasetStatistics:
    """Statistics from ``statistics.json`` where the data was preprocessed, else from the data.

    Atomic energies that the user asks for replace those of the file. Where the file was found,
    not named, and belongs to other data (a shard more, free atoms kept), all is gathered anew;
    where the degree of the multipoles differs, all but the atomic energies.

    Raises:
        DataError: the file does not fit the training data.
    """
    path = _statistics_path(config)
    if isinstance(train, JoinedDataset):
        return _head_statistics(config, origins, train, path)
    wanted = _atomic_energies(config, config.E0s, train, _only_head(config))
    if path is None:
        return compute_statistics(train, wanted)
    statistics = DatasetStatistics.load(path)
    logger.info("statistics of the training data from %s", path)
    if statistics.r_max != config.r_max:
        raise DataError(
            f"{path}: was made for r_max {statistics.r_max}, but r_max is {config.r_max}; "
            "preprocess the data again or leave statistics_file out"
        )
    if not statistics.is_of(train):
        what = _difference(statistics, train)
        if config.statistics_file is not None:
            raise DataError(
                f"{path}: {what}; preprocess the data again or leave statistics_file out"
            )
        logger.warning("%s: %s; statistics are gathered from the data", path, what)
        return compute_statistics(train, wanted)
    given = origins.get("E0s", "default") != "default" or config.foundation_model is not None
    if statistics.multipoles_max_l != train.options.multipoles_max_l:
        logger.info("%s: made for another atomic_multipoles_max_l, gathered anew", path)
        return compute_statistics(train, wanted if given else statistics.atomic_energies)
    if given:
        energies = find_atomic_energies(train, wanted)
        statistics = dataclasses.replace(statistics, atomic_energies=energies)
    return statistics


def _difference(statistics: DatasetStatistics, train: StructureDataset) -> str:
    info = train.info
    return (
        f"belongs to {statistics.n_configurations} configurations, {statistics.n_atoms} atoms, "
        f"elements {list(statistics.atomic_numbers)}, but the training data holds elements "
        f"{info.atomic_numbers}, {info.n_configurations} configurations, {info.n_atoms} atoms"
    )


def keys_of_heads(options: DataOptions) -> Values:
    """Where the labels stood, for the model file; with several heads, by head."""
    if not options.heads:
        return options.keys.to_json()
    return {"heads": {head.name: head.keys.to_json() for head in options.heads}}


def _head_statistics(
    config: TrainConfig, origins: Mapping[str, str], train: JoinedDataset, path: Path | None
) -> DatasetStatistics:
    """The same with several heads, each of which may ask for its own atomic energies."""
    heads = {head.name: head.E0s for head in train.options.heads}
    asked = origins.get("E0s", "default") != "default" or any(heads.values())
    if path is not None and not asked:
        statistics = DatasetStatistics.load(path)
        if statistics.is_of(train) and statistics.r_max == config.r_max:
            logger.info("statistics of the training data from %s", path)
            return statistics
        logger.warning("%s: is of other data; statistics are gathered from the data", path)
    wanted = {
        name: _atomic_energies(config, heads[name] or config.E0s, part, name)
        for name, part in train.parts.items()
    }
    return statistics_by_head(train, wanted)


def _atomic_energies(
    config: TrainConfig, asked: AtomicEnergies, train: StructureDataset, head: str
) -> AtomicEnergies:
    """``E0s`` as asked, those that a foundation model gives looked up."""
    if isinstance(asked, str) and asked in OF_FOUNDATION:
        return foundation_energies(config, asked, train, head)
    return asked


def _only_head(config: TrainConfig) -> str:
    return parse_heads(config.heads)[0].name


def _statistics_path(config: TrainConfig) -> Path | None:
    """``statistics.json`` as named, or beside HDF5 training data that is used whole."""
    if config.statistics_file is not None:
        return Path(config.statistics_file)
    if config.train_file is None:
        return None
    train = Path(config.train_file)
    if config.valid_file is None or not (train.is_dir() or train.suffix in HDF5_SUFFIXES):
        return None
    shards = train if train.is_dir() else train.parent
    for folder in (shards, shards.parent):
        if (folder / "statistics.json").is_file():
            return folder / "statistics.json"
    return None


def schedule_problems(
    stages: Sequence[Stage], datasets: Datasets, available_outputs: frozenset[str]
) -> list[str]:
    """Everything that keeps the data or the model from serving the schedule, one line each."""
    problems = []
    info, keys = datasets.train.info, datasets.train.options.keys
    counts = label_counts(info.properties)
    places = {name: _place(name, keys) for name in PROPERTIES}
    for name, other in plain_names(info.other_keys, counts, keys).items():
        places[name] += f"; the file has '{other}': give --{name}_key {other}"
    for stage in stages:
        where = f"train_schedule.{stage.index}"
        outputs = available_outputs
        if stage.mode is not None and stage.mode.scf is None:
            outputs = outputs - {"scf"}
        problems += check_losses(
            stage.losses,
            where=f"{where}.loss",
            label_counts=counts,
            n_configurations=info.n_configurations,
            available_outputs=outputs,
            looked_for=places,
        )
        problems += _answer_problems(stage, f"{where}.loss")
        for mode, named in ((stage.mode, "train"), (stage.valid_mode, "valid")):
            if mode is not None:
                needed = mode.labels_needed_of(counts)
                problems += _mode_problems(needed, named, datasets, places, where)
                if named == "train" and len(needed) < len(mode.requires_labels):
                    logger.info(
                        "%s: no configuration has %s; 0 eV is taken for the Fermi level",
                        where,
                        places["fermi_level"],
                    )
    return list(dict.fromkeys(problems))


def _answer_problems(stage: Stage, where: str) -> list[str]:
    """Losses on what the mode of the stage does not find."""
    mode = stage.mode
    if mode is None:
        return []
    problems = []
    for term in stage.losses.terms:
        if mode.scf is None and DIPOLE_DERIVATIVES & set(term.loss.requires_outputs):
            problems.append(
                f"{where}.{term.name}: needs how the self-consistent density answers, but the "
                "mode of this stage evaluates the map once, at the density of the data; use "
                "implicit, linearize_solve or unroll_scf, or drop the loss here"
            )
        if "fermi_level" in term.loss.requires_labels and (
            mode.scf is None or not mode.constant_charge
        ):
            problems.append(
                f"{where}.{term.name}: the mode of this stage holds the Fermi level that it is "
                "given, so that the loss teaches nothing; drop it here, or use implicit, "
                "linearize_solve or unroll_scf at constant charge"
            )
    return problems


def _mode_problems(
    labels: Sequence[str],
    split: str,
    datasets: Datasets,
    places: Mapping[str, str],
    where: str,
) -> list[str]:
    info = datasets.named()[split].info
    counts = label_counts(info.properties)
    problems = []
    for name in labels:
        count = counts.get(name, 0)
        if count < info.n_configurations:
            remedy = (
                "start from local_guess and zero instead of from_data, or leave the others out"
            )
            if count == 0 and name == "charges":
                remedy = "docs/which_labels.md has configurations for data without them"
            problems.append(
                f"{where}.fixed_point_training_options: needs '{name}' in every configuration; "
                f"{count} of {info.n_configurations} {split} configurations have it "
                f"(looked for {places[name]}); {remedy}"
            )
    return problems


def _place(name: str, keys: KeyMapping) -> str:
    part = "info" if PROPERTIES[name].per == "graph" else "arrays"
    also = f" and {part}['{keys.key('atomic_multipoles')}']" if name == "charges" else ""
    return f"{part}['{keys.key(name)}']{also}"
