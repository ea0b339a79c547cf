"""``fpmace-info FILE``: what a model, checkpoint or HDF5 data file holds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from ase.data import chemical_symbols

from fpmace import __version__
from fpmace.annotations import Values
from fpmace.archive import read_archive
from fpmace.cli.common import Parser, run_command
from fpmace.errors import DataError, ModelFileError
from fpmace.models.io import FORMAT as MODEL_FORMAT
from fpmace.models.io import read_model_file, weights_checksum

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
Report = Values


def main(argv: Sequence[str] | None = None) -> int:
    """Print what a file holds; return the exit status."""
    return run_command(lambda: _print(make_parser().parse_args(argv)))


def make_parser() -> Parser:
    """Build the parser."""
    parser = Parser(
        prog="fpmace-info",
        description="Say what a model, checkpoint or HDF5 data file of fpmace holds. Nothing in "
        "the file is run.",
    )
    parser.add_argument("--version", action="version", version=f"fpmace {__version__}")
    parser.add_argument("file", metavar="FILE", help="the file, or a folder of .h5 shards")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def _print(arguments: argparse.Namespace) -> int:
    report = describe_file(arguments.file)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        text = yaml.dump(
            report, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=96
        )
        print(text.rstrip())
    return 0


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def describe_file(path: str) -> Report:
    """Describe a file in JSON-able terms; the kind of file is found from its content.

    Raises:
        ModelFileError, DataError: if it is missing, damaged, or not a file of fpmace.
    """
    place = Path(path)
    if place.is_dir():
        return _describe_data(path)
    if not place.is_file():
        raise ModelFileError(f"{path}: no such file")
    with place.open("rb") as stream:
        if stream.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE:
            return _describe_data(path)
    content = read_archive(path)
    if content.get("format") == MODEL_FORMAT:
        return _describe_model(path)
    if content.get("format") == "fpmace.checkpoint":
        return _describe_checkpoint(path)
    raise ModelFileError(
        f"{path}: is neither a model nor a checkpoint of fpmace (format {content.get('format')!r})"
    )


def _describe_model(path: str) -> Report:
    content = read_model_file(path)
    metadata = dict(content.metadata)
    numbers = content.config.get("atomic_numbers", [])
    return {
        "file": path,
        "kind": "model",
        "model": content.config["type"],
        "fpmace_version": metadata.pop("fpmace_version", None),
        "heads": list(content.config.get("heads", ["Default"])),
        "level_of_theory": metadata.pop("level_of_theory", "not stated in the file"),
        "elements": [chemical_symbols[int(number)] for number in numbers],
        "inputs": metadata.pop("inputs", "not stated in the file"),
        "required_inputs": metadata.pop("required_inputs", []),
        "r_max": content.config.get("r_max"),
        "parameters": metadata.pop("n_parameters", None),
        "dtype": metadata.pop("dtype", None),
        "weights_sha256": metadata.pop("checksum", None),
        "plugins": metadata.pop("plugins", []),
        "parts": [f"{item['kind']}: {item['name']}" for item in metadata.pop("parts", [])],
        "data": metadata.pop("data", None),
        "history": metadata.pop("history", None),
        "configuration": content.config,
        **metadata,
    }


def _describe_checkpoint(path: str) -> Report:
    from fpmace.training.checkpoint import Checkpoint

    content = Checkpoint.load(Path(path))
    progress = content.progress
    return {
        "file": path,
        "kind": "checkpoint",
        "stage": progress.stage,
        "epoch": progress.epoch,
        "optimizer_steps": progress.step,
        "best_loss": progress.best_loss,
        "best_epoch": progress.best_epoch,
        "stage_done": progress.stage_done,
        "numbers_in_weights": _count(content.model),
        "weights_sha256": weights_checksum(content.model),
        "averaged_weights": content.ema is not None,
        "configuration": content.config,
    }


def _count(state: Values) -> int:
    return sum(item.numel() for item in state.values() if isinstance(item, torch.Tensor))


def _describe_data(path: str) -> Report:
    from fpmace.data.hdf5 import Shard, shard_paths
    from fpmace.data.info import DatasetInfo

    shards = [Shard(item) for item in shard_paths(path)]
    first = shards[0].manifest
    info = DatasetInfo()
    try:
        for shard in shards:
            info = info.merge(DatasetInfo.from_json(shard.manifest.info))
    except TypeError as error:
        raise DataError(f"{path}: has a manifest that this fpmace cannot read") from error
    finally:
        for shard in shards:
            shard.close()
    return {
        "file": path,
        "kind": "data set",
        "fpmace_version": first.fpmace_version,
        "shards": len(shards),
        "r_max": first.r_max,
        "configurations": info.n_configurations,
        "atoms": info.n_atoms,
        "edges": info.n_edges,
        "atoms_per_configuration": [info.min_atoms, info.max_atoms],
        "elements": [chemical_symbols[number] for number in info.atomic_numbers],
        "config_types": info.config_types,
        "properties": info.properties,
        "periodicity": info.pbc_classes,
        "multipole_columns": first.n_multipoles,
        "isolated_atom_energies": first.isolated_atom_energies,
        "split_by": first.split_by,
        "keys": first.keys,
        "sources": [source for shard in shards for source in shard.manifest.sources],
    }


if __name__ == "__main__":
    sys.exit(main())
