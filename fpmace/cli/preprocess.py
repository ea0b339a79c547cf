"""``fpmace-preprocess``: XYZ files to HDF5 shards, with the statistics of the training set."""

from __future__ import annotations

import argparse
import logging
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from tqdm import tqdm

from fpmace.annotations import Count, Doc
from fpmace.cli.common import Parser, run_command
from fpmace.config.aliases import electrostatics_options, flattened
from fpmace.config.flags import add_key_flags, default_text
from fpmace.config.load import check_value
from fpmace.config.option import RunOption
from fpmace.config.schema import OPTIONS as TRAINING
from fpmace.config.yaml_file import read_yaml
from fpmace.data.dataset import make_loader, open_dataset
from fpmace.data.field_norms import average_field_feature_norms
from fpmace.data.heads import parse_heads
from fpmace.data.info import DatasetInfo
from fpmace.data.joined import JoinedDataset
from fpmace.data.keys import KEY_OPTIONS, heads_with_keys
from fpmace.data.options import DataOptions, chosen_defaults
from fpmace.data.preprocess import SplitSource, WrittenSplit, of_head, plan_splits, write_split
from fpmace.data.statistics import DatasetStatistics, compute_statistics, statistics_by_head
from fpmace.data.summary import summarize_infos
from fpmace.electrostatics import build_electrostatics
from fpmace.errors import ConfigError, suggestion

_DESCRIPTION = """\
Turn extended XYZ into HDF5 shards with neighbour lists, and gather the statistics of the training
set. Every option can also stand in the YAML file given by --config; flags win. The file may be
the one of the training: options that only matter there are passed over.
"""

_FILES = ("train_file", "valid_file", "valid_fraction", "test_file", "split_by", "seed")
_FILES_OF_HEAD = _FILES[:2] + _FILES[3:4]
_READING = (
    "r_max",
    "heads",
    "default_total_charge",
    "default_total_spin",
    "config_type_weights",
    "atomic_multipoles_max_l",
    "electrostatic_pbc_method",
    "allow_low_density_pbc",
    "low_density_pbc_max_volume_per_atom",
    "min_distance",
)
_STATISTICS = (
    "E0s",
    "field_feature_norms",
    "field_feature_max_l",
    "field_feature_widths",
    "include_field_si",
    "atomic_multipoles_smearing_width",
    "kspace_cutoff_factor",
    "kspace_window",
    "electrostatics",
    "quadrupole_feature_corrections",
    "fermi_level_offset",
    "atom_density_scaling",
)


def _own(name: str, annotation: Any, default: Any) -> RunOption:
    return RunOption(name, annotation, default, "Output")


_OUTPUT = (
    _own(
        "output",
        Annotated[str, Doc("folder for train/, valid/, test/ and statistics.json")],
        "preprocessed",
    ),
    _own("shards", Annotated[Count, Doc("HDF5 files per split")], 1),
    _own(
        "num_process",
        Annotated[Count, Doc("processes that read and build neighbour lists")],
        1,
    ),
    _own("compute_statistics", Annotated[bool, Doc("write statistics.json")], True),
)

_OTHER_FLAGS = {"output": ("--h5_prefix",), "num_process": ("--workers",)}

GROUPS: dict[str, tuple[RunOption, ...]] = {
    "Files": tuple(TRAINING[name] for name in _FILES),
    "Output": _OUTPUT,
    "Reading and checking": tuple(TRAINING[name] for name in _READING),
    "Statistics": tuple(TRAINING[name] for name in _STATISTICS),
}
OPTIONS: dict[str, RunOption] = {item.name: item for group in GROUPS.values() for item in group}


@dataclass(frozen=True)
class Settings:
    """Checked options by name, and which of them the user gave."""

    values: dict[str, Any]
    given: frozenset[str]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def make_parser() -> argparse.ArgumentParser:
    """Build the parser; values stay text until they are checked."""
    parser = Parser(
        prog="fpmace-preprocess",
        usage="fpmace-preprocess --train_file FILE [--config FILE ...] [--OPTION VALUE ...]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", nargs="+", action="extend", default=[], metavar="FILE")
    add_key_flags(parser)
    for title, items in GROUPS.items():
        group = parser.add_argument_group(title)
        for item in items:
            default = default_text(item)
            text = item.meaning + (f" [{default}]" if default else "")
            names = [item.flag, *_OTHER_FLAGS.get(item.name, ())]
            switch: dict[str, Any] = {"nargs": "?", "const": "true"} if item.is_switch else {}
            group.add_argument(
                *names,
                dest=item.name,
                default=argparse.SUPPRESS,
                metavar="true|false" if item.is_switch else "VALUE",
                help=textwrap.fill(text, 70).replace("%", "%%"),
                **switch,
            )
    return parser


def read_settings(argv: Sequence[str]) -> Settings:
    """Merge defaults, YAML files and flags.

    Raises:
        ConfigError: an unknown option, a value of the wrong type, or no training file.
    """
    texts = vars(make_parser().parse_args(list(argv)))
    values: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for path in texts.pop("config"):
        content = read_yaml(path)
        for name, value in flattened(content.values).items():
            target = "output" if name == "h5_prefix" else name
            if name in KEY_OPTIONS:
                keys[KEY_OPTIONS[name]] = str(value)
            elif target in OPTIONS:
                values[target] = _checked(OPTIONS[target], value, content.origin(name))
            elif name not in TRAINING:
                raise ConfigError(
                    f"unknown option{suggestion(name, [*OPTIONS, *TRAINING])}",
                    where=f"{name} ({content.origin(name)})",
                )
    for name, text in texts.items():
        if name in KEY_OPTIONS:
            keys[KEY_OPTIONS[name]] = text
            continue
        item = OPTIONS[name]
        values[name] = _checked(item, text, item.flag)
    if keys:
        values["heads"] = heads_with_keys(values.get("heads"), keys)
    _take_files(values)
    if values.get("train_file") is None and not _of_heads(values):
        raise ConfigError("is missing; give an extended XYZ file", where="--train_file")
    defaults = {name: item.default for name, item in OPTIONS.items()}
    return Settings({**defaults, **values}, frozenset(values))


def _take_files(values: dict[str, Any]) -> None:
    """Files and atomic energies of the only head are those of the run."""
    heads = parse_heads(values.get("heads"))
    for name in (*_FILES_OF_HEAD, "E0s") if len(heads) == 1 else ():
        if getattr(heads[0], name) is not None:
            values.setdefault(name, getattr(heads[0], name))


def _of_heads(values: dict[str, Any]) -> bool:
    """Whether each head has files of its own."""
    return all(head.train_file is not None for head in parse_heads(values.get("heads")))


def _checked(item: RunOption, value: Any, origin: str) -> Any:
    try:
        return check_value(item, value)
    except ConfigError as error:
        raise ConfigError(error.message, where=f"{item.name} ({origin})") from None


def data_options(settings: Settings) -> DataOptions:
    """Return how the configurations are read and checked."""
    asked = "electrostatic_pbc_method" in settings.given
    heads = parse_heads(settings["heads"])
    return DataOptions(
        keys=heads[0].keys,
        heads=heads if len(heads) > 1 else (),
        multipoles_max_l=settings["atomic_multipoles_max_l"],
        config_type_weights=settings["config_type_weights"] or None,
        pbc_handling=settings["electrostatic_pbc_method"] if asked else None,
        allow_low_density_pbc=settings["allow_low_density_pbc"],
        low_density_pbc_max_volume_per_atom=settings["low_density_pbc_max_volume_per_atom"],
        min_distance=settings["min_distance"],
        split_by=settings["split_by"],
        defaults=chosen_defaults(settings["default_total_charge"], settings["default_total_spin"]),
    )


def run(settings: Settings) -> int:
    """Write the shards and the statistics, print what was done, return the exit status 0."""
    options = data_options(settings)
    written: dict[str, list[WrittenSplit]] = {}
    for split, own in _plan(settings, options):
        written.setdefault(split.name, []).append(_write(split, settings, own))
    infos = {n: reduce(DatasetInfo.merge, [i.info for i in w]) for n, w in written.items()}
    n_isolated = {name: sum(item.n_isolated for item in w) for name, w in written.items()}
    print(summarize_infos(infos, n_isolated, options.keys.keys))
    shards = [path for parts in written.values() for part in parts for path in part.shards]
    lines = [f"{path}  {_size(path)}" for path in shards]
    if settings["compute_statistics"]:
        path = Path(settings["output"]) / "statistics.json"
        statistics = _statistics(written["train"][0].directory, settings, options)
        statistics.save(path)
        print(_statistics_text(statistics))
        lines.append(f"{path}  {_size(path)}")
    print("written:")
    print("\n".join(f"  {line}" for line in lines))
    return 0


def _plan(settings: Settings, options: DataOptions) -> Iterator[tuple[SplitSource, DataOptions]]:
    """What is read for each split, and how; with several heads, head by head."""
    how = {name: settings[name] for name in ("valid_fraction", "split_by", "seed")}
    files = [settings[name] for name in _FILES_OF_HEAD]
    if not options.heads:
        for split in plan_splits(*files, **how):
            yield split, options
        return
    whole = plan_splits(*files, **how) if files[0] is not None else None
    for head in options.heads:
        own = options.for_head(head.name)
        if whole is None:
            assert head.train_file is not None
            shares = how if head.valid_file is None else {**how, "valid_fraction": None}
            parts = plan_splits(head.train_file, head.valid_file, head.test_file, **shares)
        else:
            found = [of_head(split, head.name, options) for split in whole]
            parts = [split for split in found if split is not None]
        for split in parts:
            yield split, own


def _write(split: SplitSource, settings: Settings, options: DataOptions) -> WrittenSplit:
    terminal = sys.stderr.isatty()
    with tqdm(total=len(split.frames), desc=split.name, unit="conf", disable=not terminal) as bar:
        written = write_split(
            split,
            settings["output"],
            settings["r_max"],
            options,
            n_shards=settings["shards"],
            n_processes=settings["num_process"],
            progress=bar.update,
        )
    if not terminal:
        print(f"{split.name}: {len(split.frames)} configurations of {split.path} done")
    return written


def _statistics(directory: Path, settings: Settings, options: DataOptions) -> DatasetStatistics:
    dataset = open_dataset(directory, settings["r_max"], options)
    if isinstance(dataset, JoinedDataset):
        asked = {head.name: head.E0s or settings["E0s"] for head in options.heads}
        statistics = statistics_by_head(dataset, asked)
    else:
        statistics = compute_statistics(dataset, settings["E0s"])
    offset = settings["fermi_level_offset"]
    if offset != "average":
        statistics = statistics.with_fermi_level_offset(offset)
    if settings["atom_density_scaling"] == "average" and not statistics.atom_density_scaling:
        raise ConfigError(
            f"average needs {options.keys.key('atomic_multipoles')} (atomic_multipoles) or "
            f"{options.keys.key('charges')} (charges), and no training configuration has them; "
            "give 'None' or a mapping",
            where="atom_density_scaling",
        )
    if "field_feature_norms" not in settings.given or settings["field_feature_norms"] != "average":
        return statistics
    electrostatics = build_electrostatics(
        settings["electrostatics"], electrostatics_options(settings.__getitem__)
    )
    # The same batches as in training, so that the norms agree to the last digit.
    loader = make_loader(dataset, batch_size=8)
    norms = average_field_feature_norms(
        tqdm(loader, desc="field feature norms", disable=not sys.stderr.isatty()),
        electrostatics,
        statistics.fermi_level_offset or 0.0,
        with_levels=dataset.info.properties.get("fermi_level", 0) > 0,
    )
    return statistics.with_norms(norms, electrostatics)


def _statistics_text(statistics: DatasetStatistics) -> str:
    rows = {
        "atomic energies E0 (eV)": _by_element(statistics.atomic_energies),
        "neighbours per atom": f"{statistics.avg_num_neighbors:.4f}",
        "mean of (E - sum E0) per atom (eV)": f"{statistics.mean:.6f}",
        "RMS force component (eV/A)": f"{statistics.rms:.6f}",
    }
    if statistics.fermi_level_offset is not None:
        rows["Fermi level offset (eV)"] = f"{statistics.fermi_level_offset:.6f}"
    if statistics.atom_density_scaling is not None:
        rows["RMS multipole component"] = _by_element(statistics.atom_density_scaling)
    if statistics.field_feature_norms is not None:
        norms = ", ".join(f"{value:.6f}" for value in statistics.field_feature_norms)
        rows["field feature norms (V)"] = norms
    return "statistics of the training set:\n" + "\n".join(
        f"  {name}: {value}" for name, value in rows.items()
    )


def _by_element(values: dict[int, float]) -> str:
    from ase.data import chemical_symbols

    return ", ".join(f"{chemical_symbols[z]} {value:.6f}" for z, value in values.items())


def _size(path: Path) -> str:
    return f"({path.stat().st_size / 1e6:.2f} MB)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code (2 for anything the user can mend)."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run_command(lambda: run(read_settings(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    sys.exit(main())
