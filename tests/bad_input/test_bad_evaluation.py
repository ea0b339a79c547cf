"""Every mistake in an evaluation is one clear line and exit status 2."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from calculator_cases import affine_model, local_model, water_row
from damage import damages

from fpmace.cli.evaluate import main
from fpmace.models.io import save_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and files, good and bad."""
    folder = tmp_path_factory.mktemp("bad")
    save_model(folder / "fixed.model", affine_model())
    save_model(folder / "mace.model", local_model())
    torch.save({"format": "fpmace.checkpoint"}, folder / "run.ckpt")
    (folder / "text.model").write_text("hello")
    for name, frames in structures().items():
        write(folder / f"{name}.xyz", frames)
    (folder / "empty.xyz").write_text("")
    text = (folder / "good.xyz").read_text()
    (folder / "truncated.xyz").write_text("".join(text.splitlines(keepends=True)[:-1]))
    return folder


def structures() -> dict[str, list[Atoms]]:
    """Two configurations each; the second has the fault."""

    def pair() -> list[Atoms]:
        return [water_row(1), water_row(2)]

    frames = {name: pair() for name in ("good", "foreign", "nan", "nocell", "close", "charge")}
    for atoms in frames["good"]:
        atoms.info["REF_energy"] = 0.0
    frames["foreign"][1].numbers[0] = 16
    frames["nan"][1].positions[2, 0] = np.nan
    frames["nocell"][1].pbc = True
    frames["close"][1].positions[1] = frames["close"][1].positions[0] + 0.01
    frames["charge"][1].info["total_charge"] = "plus"
    return frames


CASES = {
    "model missing": (["--model", "{}/none.model"], r"none.model: no such file"),
    "model damaged": (["--model", "{}/text.model"], r"text.model: is damaged or not a file of"),
    "checkpoint": (["--model", "{}/run.ckpt"], r"run.ckpt: is not a model file of fpmace"),
    "configs missing": (["--configs", "{}/none.xyz"], r"none.xyz: no such file"),
    "configs empty": (["--configs", "{}/empty.xyz"], r"empty.xyz: holds no configurations"),
    "truncated": (["--configs", "{}/truncated.xyz"], r"configuration 1: the file is truncated"),
    "element": (
        ["--configs", "{}/foreign.xyz"],
        r"configuration 1: .*element S is not in the mod",
    ),
    "nan": (["--configs", "{}/nan.xyz"], r"nan.xyz: configuration 1: .*not finite"),
    "no cell": (["--configs", "{}/nocell.xyz"], r"configuration 1: .*Lattice has no vector a"),
    "overlap": (["--configs", "{}/close.xyz"], r"configuration 1: .*closer than 0.2 A"),
    "charge": (["--configs", "{}/charge.xyz"], r"configuration 1: total_charge .*not numeric"),
    "key": (["--energy_key", "REF_energi"], r"no configuration has 'REF_energi' \(energy\); did"),
    "label": (["--mode", "direct"], r"--mode direct needs REF_atomic_multipoles .* 0 of 2"),
    "start": (["--initial_density", "from_data"], r"a start from the data needs REF_atomic_mul"),
    "level": (["--initial_fermi_level", "from_data"], r"needs REF_fermi_level .* in every conf"),
    "level word": (["--initial_fermi_level", "high"], r"initial_fermi_level: .*high"),
    "mode": (["--mode", "unroll"], r"command line: .*invalid choice: 'unroll'"),
    "flag": (["--batchsize", "3"], r"command line: unrecognized arguments: --batchsize"),
    "batch": (["--batch_size", "0"], r"batch_size: must be 1 or more, got 0"),
    "device": (["--device", "tpu"], r"device: 'tpu' is not a device"),
    "no cuda": (["--device", "cuda:9"], r"device: 'cuda:9' is not available"),
    "scf name": (["--scf_options", "{{tolerance: 1}}"], r"scf_options.tolerance: no SCF setting"),
    "scf value": (
        ["--scf_options", "{{scf_tolerance: -1}}"],
        r"scf_tolerance: expects number above 0, got -1",
    ),
    "scf text": (["--scf_options", "nofile.yaml"], r"--scf_options: 'nofile.yaml' is neither"),
    "boundary": (["--pbc_handling", "slab"], r"configuration 0: pbc FFF does not suit .*'slab'"),
    "local pbc": (
        ["--model", "{}/mace.model", "--pbc_handling", "slab"],
        r"pbc_handling: a ScaleShiftMACE model has no electrostatics",
    ),
    "prefix": (["--info_prefix", ""], r"info_prefix: must be text without"),
    "prefix of two lines": (["--info_prefix", "a\nb"], r"info_prefix: must be .*got 'a\\nb'"),
    "prefix with a tab": (["--info_prefix", "a\t"], r"info_prefix: must be text without"),
    "same file": (["--output", "{}/good.xyz"], r"output: '.*good.xyz' is the input file"),
    "table": (
        ["--error_table", "PerAtomRMS"],
        r"error_table.*did you mean 'PerAtomRMSE'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra, pattern = CASES[name]
    defaults = {"--configs": "good.xyz", "--model": "fixed.model", "--output": "out.xyz"}
    argv = [text for flag, file in defaults.items() for text in (flag, str(place / file))]
    assert main([*argv, *(text.format(place) for text in extra)]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert re.search(pattern, lines[0]), lines[0]
    assert not (place / "out.xyz").exists()


def test_a_run_is_continued_only_where_it_fits(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = ["--configs", str(place / "foreign.xyz"), "--model", str(place / "fixed.model")]
    output = ["--output", str(place / "part.xyz"), "--batch_size", "1"]
    assert main([*foreign, *output]) == 2
    assert (place / "part.xyz.partial").exists()
    other = ["--configs", str(place / "good.xyz"), "--model", str(place / "fixed.model")]
    assert main([*other, *output, "--resume"]) == 2
    assert "was made with another input" in capsys.readouterr().err
    state = place / "part.xyz.partial.state"
    state.write_bytes(b"garbage")
    assert main([*foreign, *output, "--resume"]) == 2
    assert "part.xyz.partial.state: is damaged; delete it" in capsys.readouterr().err


@pytest.fixture
def begun(place: Path, tmp_path: Path) -> list[str]:
    """Arguments that go on with an evaluation which stopped at its second configuration."""
    files = {"--configs": place / "foreign.xyz", "--model": place / "fixed.model"}
    given = {**files, "--output": tmp_path / "o.xyz", "--batch_size": 1}
    argv = [str(text) for pair in given.items() for text in pair]
    assert main(argv) == 2
    return [*argv, "--resume"]


FORGED = {
    "offset": [-1, 10**12, "x", None],
    "n_done": [-1, 99, "x", None],
    "fingerprint": [None, 3, []],
    "state": [None, 3, {}, {"errors": 3}],
}


@pytest.mark.parametrize("name", FORGED)
def test_states_of_wrong_content(name, begun, tmp_path, capsys):
    path = tmp_path / "o.xyz.partial.state"
    content = torch.load(path, weights_only=True)
    del content["checksum"]
    for value in FORGED[name]:
        torch.save({**content, name: value}, path)
        capsys.readouterr()
        assert main(begun) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1, errors
        assert ".partial" in errors[0]
    for part in ("errors", "scf", "unconverged", "parity"):
        torch.save({**content, "state": {**content["state"], part: 3}}, path)
        assert main(begun) == 2
        assert "o.xyz.partial.state: is damaged" in capsys.readouterr().err


def test_a_damaged_state_is_noticed_or_harmless(begun, tmp_path, capsys):
    path = tmp_path / "o.xyz.partial.state"
    whole = path.read_bytes()
    noticed = 0
    for changed in damages(whole, 20):
        path.write_bytes(changed)
        capsys.readouterr()
        assert main(begun) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1, errors
        noticed += "is damaged" in errors[0]
        assert noticed or "element S is not in the model" in errors[0]
    assert noticed > 20
