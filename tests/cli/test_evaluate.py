"""The evaluation command: streaming, resuming, errors, histories, every kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write
from calculator_cases import affine_model, local_model, vibration, water_row

from fpmace.calculators import FixedPointSCF
from fpmace.cli import evaluate as command
from fpmace.cli.evaluate import main
from fpmace.data.keys import KeyMapping
from fpmace.evaluation.evaluate import evaluate_file
from fpmace.evaluation.options import EvaluationOptions
from fpmace.models.io import save_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each kind and seven labelled configurations."""
    folder = tmp_path_factory.mktemp("evaluation")
    save_model(folder / "fixed.model", affine_model())
    save_model(folder / "mace.model", local_model())
    write(folder / "data.xyz", labelled())
    return folder


def labelled() -> list[Atoms]:
    """Configurations whose labels are the model's predictions, the energy 0.3 eV too high."""
    frames = [
        *vibration(water_row(1), 3),
        *vibration(water_row(2), 3),
        *vibration(water_row(1, pbc=True), 1),
    ]
    calc = FixedPointSCF(affine_model())
    for number, atoms in enumerate(frames):
        atoms.info["total_charge"] = float(number == 1)
        results = calc.evaluate([atoms])[0]
        atoms.info["REF_energy"] = results["energy"] + 0.3
        atoms.arrays["REF_forces"] = results["forces"]
        atoms.arrays["REF_atomic_multipoles"] = results["density_coefficients"]
        atoms.info["REF_fermi_level"] = results["fermi_level"]
        atoms.info["config_type"] = "pair" if len(atoms) > 3 else "one"
    return frames


def arguments(place: Path, output: str, *more: str, model: str = "fixed.model") -> list[str]:
    files = {"configs": place / "data.xyz", "model": place / model, "output": place / output}
    return [text for name, path in files.items() for text in (f"--{name}", str(path))] + [*more]


def frames_of(path: Path) -> list[Atoms]:
    found = read(path, ":")
    assert isinstance(found, list)
    return found


def test_predictions_labels_and_errors(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--batch_size", "3", "--compute_stress", "--plot")
    assert main(arguments(place, "out.xyz", *more)) == 0
    found = frames_of(place / "out.xyz")
    assert len(found) == 7
    for atoms in found:
        assert atoms.info["MACE_energy"] == pytest.approx(atoms.info["REF_energy"] - 0.3, abs=1e-6)
        np.testing.assert_allclose(
            atoms.arrays["MACE_forces"], atoms.arrays["REF_forces"], atol=1e-5
        )
        assert atoms.info["MACE_scf_converged"]
        assert atoms.arrays["MACE_density_coefficients"].shape == (len(atoms), 4)
        assert ("MACE_stress" in atoms.info) == bool(atoms.pbc.all())
    text = capsys.readouterr().out
    assert "RMSE E / meV/atom" in text
    assert "| pair" in text
    assert "SCF converged for 7 of 7 structures" in text
    assert (place / "out.parity.png").stat().st_size > 0
    assert not list(place.glob("*.partial*"))


def test_direct_mode_starts_from_the_density_of_the_file(place: Path) -> None:
    assert main(arguments(place, "direct.xyz", "--mode", "direct", "--info_prefix", "d_")) == 0
    for atoms in frames_of(place / "direct.xyz"):
        assert atoms.info["d_energy"] == pytest.approx(atoms.info["REF_energy"] - 0.3, abs=1e-4)
        assert "d_num_scf_steps" not in atoms.info


def test_local_models_are_evaluated_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--mode", "scf", "--dont_compute_force")
    assert main(arguments(place, "local.xyz", *more, model="mace.model")) == 0
    found = frames_of(place / "local.xyz")
    assert "MACE_energy" in found[0].info
    assert "MACE_forces" not in found[0].arrays
    assert "MACE_charges" not in found[0].arrays
    text = capsys.readouterr().out
    assert "a ScaleShiftMACE model without a self-consistent density: --mode is ignored" in text
    assert "SCF" not in text


def test_constant_fermi_level_and_histories(place: Path) -> None:
    settings = "{constant_charge: false, initial_fermi_level: 0.2, solver: anderson}"
    more = ("--scf_options", settings, "--scf_history", "full_history", "--batch_size", "7")
    assert main(arguments(place, "history.xyz", *more)) == 0
    for atoms in frames_of(place / "history.xyz"):
        assert atoms.info["MACE_fermi_level"] == pytest.approx(0.2)
        steps = atoms.info["MACE_num_scf_steps"]
        changes = np.ravel(atoms.info["MACE_density_change"])
        assert len(changes) == steps
        assert changes[-1] < 1e-6
        assert atoms.arrays["MACE_density_history"].shape[1] == 4 * (steps + 1)


def test_options_from_a_file_and_another_boundary_condition(place: Path) -> None:
    settings = place / "scf.yaml"
    settings.write_text("scf_tolerance: 1e-8\nsolver: newton_krylov\n")
    more = ("--scf_options", str(settings), "--scf_history", "absolute_change")
    assert main(arguments(place, "a.xyz", *more, "--initial_density", "zero")) == 0
    changes = np.ravel(frames_of(place / "a.xyz")[0].info["MACE_density_change"])
    assert changes[-1] < 1e-8
    boxed = place / "boxed.xyz"
    molecules = frames_of(place / "data.xyz")[:2]
    for atoms in molecules:
        atoms.set_cell([15.0, 15.0, 15.0])
    write(boxed, molecules)
    more = ("--configs", str(boxed), "--pbc_handling", "molecule_in_box")
    assert main(arguments(place, "b.xyz", *more)) == 0
    assert len(frames_of(place / "b.xyz")) == 2


class Stopped(Exception):
    """Stands for a killed run."""


def stop_after(n: int) -> object:
    def progress(done: int, total: int) -> None:
        if done >= n:
            raise Stopped

    return progress


@pytest.mark.parametrize("saved", [True, False])
def test_a_resumed_run_equals_an_uninterrupted_one(
    place: Path, saved: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = EvaluationOptions(
        configs=str(place / "data.xyz"),
        model=str(place / "fixed.model"),
        output=str(place / "whole.xyz"),
        batch_size=2,
        plot=True,
    )
    expected = evaluate_file(whole)
    parts = EvaluationOptions(
        **{**vars(whole), "output": str(place / "parts.xyz"), "save_every": 0.0}
    )
    with pytest.raises(Stopped):
        evaluate_file(parts, progress=stop_after(4))  # type: ignore[arg-type]
    partial = place / "parts.xyz.partial"
    assert len(frames_of_text(partial)) == 4
    with partial.open("a") as stream:
        stream.write("3\nhalf a frame")
    if not saved:
        (place / "parts.xyz.partial.state").unlink()
    resumed = EvaluationOptions(**{**vars(parts), "resume": True})
    report = evaluate_file(resumed)
    assert report.n_resumed == (4 if saved else 0)
    assert report.table == expected.table
    assert report.scf == expected.scf
    assert (place / "parts.xyz").read_text() == (place / "whole.xyz").read_text()
    assert not list(place.glob("parts.xyz.partial*"))
    assert ("going on after 4 of 7" in capsys.readouterr().out) == saved


def frames_of_text(path: Path) -> list[Atoms]:
    found = read(path, ":", format="extxyz")
    assert isinstance(found, list)
    return found


def test_memory_does_not_grow_with_the_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more structures are held at a time than a batch of input and one of output."""
    alive: list[int] = []
    from fpmace.evaluation import evaluate as module

    original = module.in_batches

    def counted(items: object, size: int) -> object:
        for chunk in original(items, size):  # type: ignore[arg-type]
            alive.append(len(chunk))
            yield chunk

    monkeypatch.setattr(module, "in_batches", counted)
    assert main(arguments(place, "stream.xyz", "--batch_size", "2")) == 0
    assert alive == [2, 2, 2, 1]


def test_unconverged_configurations_are_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = "{solver: linear, num_scf_steps: 2, scf_tolerance: 1e-12}"
    assert main(arguments(place, "loose.xyz", "--scf_options", settings)) == 0
    text = capsys.readouterr().out
    assert "SCF converged for 0 of 7 structures" in text
    assert "not converged (index in" in text
    assert "0, 1, 2, 3, 4, 5, 6" in text
    assert not any(atoms.info["MACE_scf_converged"] for atoms in frames_of(place / "loose.xyz"))


def test_keys_reach_the_data_layer() -> None:
    argv: Sequence[str] = ["--configs", "a", "--model", "b", "--output", "c"]
    options = command.read_options([*argv, "--energy_key", "E", "--total_charge_key", "Q"])
    assert options.keys.key("energy") == "E"
    assert options.keys.explicit == {"energy", "total_charge"}
    assert options.keys.key("forces") == KeyMapping().key("forces")
