"""``fpmace-response``: response properties of the structures of a file, by linear response."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from ase import Atoms
from tqdm import tqdm

from fpmace import __version__
from fpmace.annotations import Values
from fpmace.calculators.inputs import PER_ATOM_INPUTS, data_options
from fpmace.calculators.loading import model_device, open_model
from fpmace.cli.common import Parser, run_command
from fpmace.cli.defaults import add_defaults, given_defaults
from fpmace.cli.inference import add_inference, inference_of
from fpmace.cli.response_files import Record, check_format, records, response_format
from fpmace.config.yaml_file import parse_value
from fpmace.data.atomic_data import atomic_data, collate
from fpmace.data.budget import in_batches
from fpmace.data.checks import check_geometry
from fpmace.data.configuration import Configuration
from fpmace.data.extxyz import Frame, read_frames, read_structures, scan_frames
from fpmace.data.keys import PROPERTIES as CONTRACT
from fpmace.data.keys import KeyMapping
from fpmace.data.options import DataOptions
from fpmace.devices import check_device, own_device
from fpmace.distributed.join import joined
from fpmace.distributed.process import ALONE, Process
from fpmace.errors import ConfigError, FpmaceError, suggestion
from fpmace.evaluation.sharing import write_shared
from fpmace.evaluation.writer import ResumableWriter
from fpmace.files import check_output
from fpmace.models.base import Model
from fpmace.models.io import weights_checksum
from fpmace.observables.converged import response_scf_options
from fpmace.observables.passivity import NegativePolarizabilities
from fpmace.observables.response import PROPERTIES, compute_response, offered_properties
from fpmace.observables.vibrations import RigidMotions
from fpmace.scf.options import ScfOptions, check_scf

INPUTS = ("total_charge", "total_spin", "external_field", "fermi_level")
DTYPES = {"float64": torch.float64, "float32": torch.float32}
_DEFAULT = "polarizability,born_charges,fukui"

_DESCRIPTION = """\
Response properties of converged calculations, by linear response (no finite differences), at
constant charge or, with --scf_options "constant_charge: false", at constant Fermi level.
"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    known = "\n".join(f"  {name:<22}{text}" for name, text in PROPERTIES.items())
    parser = Parser(
        prog="fpmace-response",
        description=_DESCRIPTION,
        epilog=f"properties:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--version", action="version", version=f"fpmace {__version__}")
    add("--model", required=True, metavar="FILE", help="model file")
    add("--configs", required=True, metavar="FILE", help="structures, extended XYZ")
    add("--output", required=True, metavar="FILE", help=".xyz, .json (one line each) or .npz")
    text = f"[{_DEFAULT}], or all; without names, those that the model has"
    add("--properties", metavar="A,B", help=text)
    add(
        "--scf_options",
        default="{}",
        metavar="YAML",
        help='for example "{constant_charge: false, initial_fermi_level: -4.2}"',
    )
    add("--head", metavar="NAME", help="the head to use of a model with several")
    add("--pbc_handling", metavar="METHOD", help="boundary method, if not that of the model")
    add(
        "--remove",
        choices=("auto", "none", "translations", "all"),
        default="auto",
        help="rigid motions left out of the vibrations [auto: what the boundary allows]",
    )
    add("--batch_size", type=int, default=4, help="structures solved at a time [4]")
    add("--device", default="cpu", help="cpu or cuda[:index] [cpu]")
    add("--dtype", choices=tuple(DTYPES), default="float64", help="[float64]")
    add_inference(parser)
    add("--plugins", nargs="+", default=[], metavar="FILE", help="modules the model needs")
    add("--resume", action="store_true", help="go on with an interrupted run")
    add("--info_prefix", default="response_", help="put before every name [response_]")
    for name in (*INPUTS, *PER_ATOM_INPUTS):
        text = f"key of the {name} [{CONTRACT[name].key}]; if given, it must be there"
        add(f"--{name}_key", metavar="KEY", help=text)
    add_defaults(parser)
    return parser


@dataclasses.dataclass(frozen=True)
class Job:
    """A checked command line with its model."""

    arguments: argparse.Namespace
    properties: list[str]
    model: Model
    scf: ScfOptions
    data: DataOptions
    process: Process = ALONE
    signs: NegativePolarizabilities = dataclasses.field(default_factory=NegativePolarizabilities)

    def take_signs(self) -> Values:
        """What this process counted since the last time; that of the first one stays."""
        return {} if self.process.writes else self.signs.taken()


def main(argv: Sequence[str] | None = None) -> int:
    """Compute and write response properties; return the exit status."""
    return run_command(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    with joined() as group:
        return _run(prepare(argv, group.process))


def prepare(argv: Sequence[str], process: Process = ALONE) -> Job:
    """Check the command line and load the model.

    Raises:
        ConfigError, ModelFileError: for anything that does not fit.
    """
    arguments = make_parser().parse_args(list(argv))
    properties = _properties(arguments.properties or _DEFAULT)
    check_format(arguments.output, properties)
    inputs = [arguments.configs, arguments.model, *arguments.plugins]
    check_output(arguments.output, inputs, where="--output")
    device = own_device(arguments.device, process)
    check_device(device)
    if arguments.batch_size < 1:
        raise ConfigError(f"must be 1 or more, got {arguments.batch_size}", where="--batch_size")
    dtype = DTYPES[arguments.dtype]
    model = open_model(
        arguments.model,
        device=device,
        dtype=dtype,
        pbc_handling=arguments.pbc_handling,
        plugins=arguments.plugins,
        inference=inference_of(arguments),
        head=arguments.head,
    )
    if arguments.properties in (None, "all"):
        offered = offered_properties(model)
        properties = [name for name in properties if name in offered] or properties
    scf = _scf(arguments.scf_options, dtype)
    return Job(arguments, properties, model, scf, _data_options(arguments, model, scf), process)


def _properties(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(PROPERTIES)
    for name in names:
        if name not in PROPERTIES:
            raise ConfigError(
                f"unknown '{name}'{suggestion(name, PROPERTIES)} (known: {', '.join(PROPERTIES)})",
                where="--properties",
            )
    if not names:
        raise ConfigError(f"names nothing (known: {', '.join(PROPERTIES)})", where="--properties")
    return names


def _scf(text: str, dtype: torch.dtype) -> ScfOptions:
    given = parse_value(text if text.lstrip().startswith("{") else "{" + text + "}")
    default = dataclasses.asdict(response_scf_options(dtype))
    return ScfOptions(**{**default, **check_scf(given, "--scf_options")})


def _data_options(arguments: argparse.Namespace, model: Model, scf: ScfOptions) -> DataOptions:
    """Read only what the calculation needs; labels are passed over."""
    needed = ["atomic_multipoles"] if scf.initial_density == "from_data" else []
    if scf.initial_fermi_level == "from_data":
        needed.append("fermi_level")
    needed += [name for name in PER_ATOM_INPUTS if name in model.inputs]
    needed += sorted(model.required_inputs)
    if scf.charge_per == "fragment":
        needed += ["cluster_id", "formal_charges"]
    keys = dict.fromkeys(CONTRACT, "")
    for name in (*INPUTS, *needed):
        keys[name] = CONTRACT[name].key
    for name in (*INPUTS, *PER_ATOM_INPUTS):
        if getattr(arguments, f"{name}_key") is not None:
            keys[name] = getattr(arguments, f"{name}_key")
            needed.append(name)
    return dataclasses.replace(
        data_options(model),
        keys=KeyMapping(keys),
        required=tuple(needed),
        defaults=given_defaults(arguments),
        keep_isolated_atoms=True,
    )


def _run(job: Job) -> int:
    arguments, process = job.arguments, job.process
    output, path = arguments.output, arguments.configs
    form = response_format(output, arguments.info_prefix)
    frames = scan_frames(path)
    writer = _writer(job) if process.writes else None
    first = process.from_first(lambda: writer.n_done if writer else 0)
    hidden = None if process.writes else True
    with tqdm(total=len(frames), initial=first, unit="structure", disable=hidden) as progress:

        def work(chunk: Sequence[Frame]) -> list[str]:
            configurations = list(read_frames(path, chunk, job.data))
            structures = [atoms for _, atoms in read_structures(path, chunk)]
            return [form.text(*item) for item in _compute(job, configurations, structures)]

        write_shared(
            process,
            in_batches(frames[first:], arguments.batch_size),
            work,
            writer=writer,
            own=job.take_signs,
            absorb=lambda found: job.signs.merge(NegativePolarizabilities(**found)),
            state=lambda: dataclasses.asdict(job.signs),
            progress=lambda done: progress.update(done - progress.n),
        )
    if writer is None:
        return 0
    writer.finish(form.convert)
    print(f"{len(frames)} structures: {', '.join(job.properties)} -> {output}")
    if warning := job.signs.warning(job.model):
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _writer(job: Job) -> ResumableWriter:
    """The output, and what is known of it where a run is gone on with."""
    given = vars(job.arguments).copy()
    for name in ("resume", "model", "configs", "output", "device", "kernels"):
        given.pop(name)
    source = Path(job.arguments.configs)
    fingerprint = {
        "input": f"{source.name}, {source.stat().st_size} bytes",
        "model": weights_checksum(job.model.state_dict())[:16],
        **{name: repr(value) for name, value in given.items()},
    }
    writer = ResumableWriter(job.arguments.output, fingerprint, resume=job.arguments.resume)
    if writer.resumed:
        try:
            job.signs.merge(NegativePolarizabilities(**writer.state))
        except TypeError as error:
            raise writer.damaged() from error
    return writer


def _compute(
    job: Job, configurations: list[Configuration], structures: list[Atoms]
) -> Iterator[tuple[Atoms, Record]]:
    for item in configurations:
        check_geometry(item, job.data)
    items = [
        atomic_data(item, job.model.r_max, job.data, index=item.index) for item in configurations
    ]
    arguments = job.arguments
    batch = collate(items, DTYPES[arguments.dtype]).to(model_device(job.model))
    masses = np.concatenate([atoms.get_masses() for atoms in structures])
    remove = None if arguments.remove == "auto" else cast(RigidMotions, arguments.remove)
    try:
        found = compute_response(
            job.model,
            batch,
            job.properties,
            scf=job.scf,
            masses=torch.from_numpy(masses).to(batch.positions),
            remove=remove,
        )
    except FpmaceError as error:
        start, last = configurations[0].index, configurations[-1].index
        where = f"configuration {start}" if last == start else f"configurations {start}-{last}"
        raise type(error)(f"{arguments.configs}: {where}: {error}") from error
    if found.polarizability is not None:
        job.signs.add(found.polarizability, batch)
    yield from zip(structures, records(found, batch), strict=True)


if __name__ == "__main__":
    sys.exit(main())
