"""Heads of a model outside of it: extraction, calculators, evaluation, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ase.io import read
from data_cases import water, write_xyz
from small_models import ELEMENTS, SMALL, SMALL_FIXED_POINT

from fpmace.calculators import FixedPointSCFCalculator, MACECalculator
from fpmace.cli.convert import main as convert
from fpmace.cli.evaluate import main as evaluate
from fpmace.data.atomic_data import batch_from_configurations
from fpmace.data.configuration import configuration_from_atoms
from fpmace.data.heads import Head
from fpmace.data.options import DataOptions
from fpmace.errors import ConfigError
from fpmace.models.base import Model
from fpmace.models.heads import of_one_head, with_heads
from fpmace.models.io import load_model, save_model
from fpmace.observables.predict import predict
from fpmace.registry import build
from fpmace.scf.options import ScfOptions

NAMES = ("pbe", "r2scan", "ccsd")
ENERGIES = [[-13.6, -430.0], [-13.0, -431.0], [-12.0, -429.0]]


def model(name: str, **options: Any) -> Model:
    torch.manual_seed(2)
    own = {"atomic_inter_scale": [0.5, 1.5, 2.0], "atomic_inter_shift": [0.0, 0.1, -0.3]}
    given = {**SMALL, **ELEMENTS, "atomic_energies": ENERGIES, "heads": list(NAMES), **options}
    if name == "ScaleShiftMACE":
        given |= own
    if name == "FixedPoint":
        given |= SMALL_FIXED_POINT
    made: Model = build("model", {"type": name, **given})
    if options.get("readout_bias"):
        for parameter in made.parameters():
            if parameter.requires_grad and not parameter.detach().any():
                torch.nn.init.normal_(parameter)
    return made.eval()


def structures() -> list[Any]:
    return [water(seed=seed, head=NAMES[seed % 3]) for seed in range(6)]


def options(head: str | None = None) -> DataOptions:
    return DataOptions(heads=tuple(Head(name) for name in NAMES), head=head)


def energies_and_forces(m: Model, how: DataOptions, frames: list[Any]) -> Any:
    configurations = [configuration_from_atoms(atoms, how) for atoms in frames]
    batch = batch_from_configurations(configurations, m.r_max, how)
    mode = build("training_mode", "scf", scf=ScfOptions()) if m.solves_self_consistency else None
    return predict(m, batch, mode=mode, outputs=("energy", "forces"))


CASES = [
    ("ScaleShiftMACE", {}),
    ("ScaleShiftMACE", {"readout_bias": True, "num_interactions": 3}),
    ("MACE", {"num_interactions": 1}),
    ("FixedPoint", {}),
]


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_a_batch_of_heads_gives_what_each_head_gives_by_itself(
    name: str, changes: dict[str, Any]
) -> None:
    whole, frames = model(name, **changes), structures()
    found = energies_and_forces(whole, options(), frames)
    energies, forces = found.energy.clone(), found.forces.view(6, 3, 3).clone()
    assert len({round(float(e), 6) for e in energies}) == 6
    for head in NAMES:
        alone = of_one_head(whole, head)
        assert alone.heads == (head,)
        assert sum(p.numel() for p in alone.parameters()) < sum(
            p.numel() for p in whole.parameters()
        )
        single = energies_and_forces(alone, DataOptions(), frames)
        same = energies_and_forces(whole, options(head), frames)
        mine = torch.tensor([atoms.info["head"] == head for atoms in frames])
        for other in (single, same):
            torch.testing.assert_close(other.energy[mine], energies[mine], rtol=1e-12, atol=1e-11)
            torch.testing.assert_close(
                other.forces.view(6, 3, 3)[mine], forces[mine], rtol=1e-9, atol=1e-11
            )


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_a_head_copied_into_several_gives_the_same(name: str, changes: dict[str, Any]) -> None:
    whole, frames = model(name, **changes), structures()
    one = energies_and_forces(whole, options("r2scan"), frames)
    two = with_heads(whole, ["new", "old"], [1, 1])
    how = DataOptions(heads=(Head("new"), Head("old")), head="old")
    again = energies_and_forces(two, how, frames)
    torch.testing.assert_close(again.energy, one.energy, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(again.forces, one.forces, rtol=1e-9, atol=1e-11)


def test_a_head_in_a_file_of_its_own(tmp_path: Path, capsys: Any) -> None:
    whole = model("ScaleShiftMACE")
    keys = {name: {"keys": {"energy": name}, "explicit": ["energy"]} for name in NAMES}
    save_model(tmp_path / "whole.model", whole, {"history": [], "keys": {"heads": keys}})
    files = [str(tmp_path / "whole.model"), str(tmp_path / "one.model")]
    assert convert([*files, "--head", "ccsd"]) == 0
    one = load_model(files[1])
    assert one.heads == ("ccsd",)
    assert one.metadata["keys"] == keys["ccsd"]
    assert one.metadata["n_parameters"] < load_model(files[0]).metadata["n_parameters"]
    expected = energies_and_forces(whole, options("ccsd"), structures())
    found = energies_and_forces(one, DataOptions(), structures())
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-12, atol=1e-11)
    assert convert(files) == 2
    assert "is a model of fpmace already; --head NAME" in capsys.readouterr().err
    assert convert([*files, "--head", "pbee"]) == 2
    error = capsys.readouterr().err
    assert (
        "head: the model has no head 'pbee'; did you mean 'pbe'? (it has pbe, r2scan, ccsd)"
        in (error)
    )


@pytest.mark.parametrize(
    ("name", "calculator"), [("MACE", MACECalculator), ("FixedPoint", FixedPointSCFCalculator)]
)
def test_a_calculator_needs_a_head(name: str, calculator: Any) -> None:
    whole, atoms = model(name), water(seed=1)
    expected = energies_and_forces(whole, options("r2scan"), [atoms])
    atoms.calc = calculator(whole, head="r2scan")
    assert atoms.get_potential_energy() == pytest.approx(float(expected.energy[0]), abs=1e-8)
    assert len(whole.heads) == 3, "the model given is not changed"
    with pytest.raises(ConfigError, match=r"head: missing; the model has pbe, r2scan, ccsd"):
        calculator(whole)
    with pytest.raises(ConfigError, match=r"head: the model has no head 'x'"):
        calculator(whole, head="x")


def test_evaluation_takes_a_head_or_that_of_each_structure(tmp_path: Path, capsys: Any) -> None:
    whole = model("ScaleShiftMACE")
    save_model(tmp_path / "m.model", whole)
    write_xyz(tmp_path / "in.xyz", structures())
    common = ["--configs", "in.xyz", "--model", "m.model", "--output", "out.xyz"]
    common = [str(tmp_path / item) if item[0] != "-" else item for item in common]
    for head, how in ((["--head", "ccsd"], options("ccsd")), ([], options())):
        assert evaluate([*common, *head]) == 0
        shown = capsys.readouterr().out
        assert all(f"| {name} " in shown for name in NAMES) == (not head)
        expected = energies_and_forces(whole, how, structures())
        found = [atoms.info["MACE_energy"] for atoms in read(tmp_path / "out.xyz", ":")]
        assert found == pytest.approx(expected.energy.tolist(), abs=1e-7)
    write_xyz(tmp_path / "in.xyz", [water(seed=1)])
    assert evaluate(common) == 2
    assert "names no head; put head=NAME" in capsys.readouterr().err
