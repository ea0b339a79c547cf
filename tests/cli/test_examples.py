"""The dynamics examples of the documentation run, with a random model and few steps."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import units
from ase.calculators.socketio import SocketIOCalculator
from ase.io import write
from ase.md.verlet import VelocityVerlet
from calculator_cases import affine_model, water_row

from fpmace.calculators import FixedPointSCF, FixedPointSCFCalculator
from fpmace.models.io import save_model

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("examples") / "random.model"
    save_model(path, affine_model())
    return str(path)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def structure(path: Path, n: int, pbc: object) -> str:
    atoms = water_row(n, pbc=pbc)
    if pbc is not False:
        atoms.set_cell([6.0, 6.0, 6.0])
    write(path, atoms)
    return str(path)


def test_nve_cluster_reports_drift_and_work(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = "--molecules 2 --ps 0.0004 --timestep 0.02 --warm_steps 2 --relax_steps 2"
    options = [*short.split(), "--trajectory", str(tmp_path / "nve.xyz"), "--temperature", "10"]
    found = example("nve_water_cluster").main(["--model", model, *options])
    assert found["fluctuation"] < 1e-3
    assert found["maps"] + found["products"] < found["maps_fresh"] + found["products_fresh"]
    assert "eV/atom/ps" in capsys.readouterr().out


def test_nve_cluster_takes_the_inner_molecules() -> None:
    atoms = example("nve_water_cluster").cluster(5)
    assert atoms.get_chemical_formula() == "H10O5"


def test_energy_error_falls_with_the_square_of_the_step(model: str) -> None:
    errors = []
    for step, n_steps in ((0.8, 5), (0.4, 10)):
        atoms = water_row(1)
        velocities = np.random.default_rng(0).normal(size=(3, 3))
        atoms.set_velocities(0.3 * velocities)
        atoms.calc = FixedPointSCF(model, scf_options={"scf_tolerance": 1e-9})
        start = atoms.get_total_energy()
        VelocityVerlet(atoms, step * units.fs).run(n_steps)
        errors.append(abs(atoms.get_total_energy() - start))
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.2)


def test_nve_box(model: str, tmp_path: Path) -> None:
    start = structure(tmp_path / "box.xyz", 1, True)
    short = ["--structure", start, "--steps", "3", "--timestep", "0.02"]
    assert np.isfinite(example("nve_periodic_box").main(["--model", model, *short]))


def test_the_charge_fluctuates_at_constant_fermi_level(model: str) -> None:
    short = ["--steps", "4", "--timestep", "0.05", "--shift", "0.1"]
    charges = example("nvt_constant_fermi").main(["--model", model, *short])
    assert len(charges) == 5
    assert np.std(charges) > 0.0
    assert abs(charges[0]) > 1e-6


def test_npt_changes_the_volume_without_solving_twice(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[frozenset[str]] = []
    original = FixedPointSCFCalculator.solve

    def counted(self: FixedPointSCFCalculator, batch: object, outputs: frozenset[str]) -> object:
        solved.append(outputs)
        return original(self, batch, outputs)  # type: ignore[arg-type]

    monkeypatch.setattr(FixedPointSCFCalculator, "solve", counted)
    start = structure(tmp_path / "box.xyz", 1, True)
    short = ["--structure", start, "--steps", "3", "--timestep", "0.02"]
    volumes = example("npt_box").main(["--model", model, *short])
    assert volumes[0] != volumes[-1]
    # The first forces, and per step one solve before and one after the cell has changed.
    assert len(solved) <= 2 * 3 + 2


def test_optimisation_lowers_the_energy(model: str, tmp_path: Path) -> None:
    output = tmp_path / "relaxed.xyz"
    short = ["--steps", "3", "--output", str(output)]
    assert example("optimise_geometry").main(["--model", model, *short]) < 0.0
    start = structure(tmp_path / "box.xyz", 1, True)
    cell = ["--structure", start, "--cell", "--steps", "2"]
    example("optimise_geometry").main(["--model", model, *cell])
    assert output.exists()


def test_an_ion_is_followed_through_the_field(model: str) -> None:
    short = ["--stages", "2", "--steps", "1", "--temperature", "1"]
    path = example("ion_in_field").main(["--model", model, *short])
    assert path.shape == (2, 3)


def test_slab_profiles_differ_by_the_field(model: str, tmp_path: Path) -> None:
    plot = tmp_path / "slab.png"
    short = ["--plot", str(plot), "--points", "20", "--field", "0.01"]
    bare, driven = example("slab_in_field").main(["--model", model, *short]).values()
    difference = driven.values - bare.values
    assert plot.stat().st_size > 0
    # In the vacuum below and above the slab the potential rises by the applied field.
    step = bare.distance[1] - bare.distance[0]
    assert difference[2] - difference[1] == pytest.approx(0.01 * step, rel=0.5)


def test_the_socket_client_serves_forces(model: str, tmp_path: Path) -> None:
    start = structure(tmp_path / "start.xyz", 1, False)
    name = f"fpmace_test_{tmp_path.name}"
    argv = ["--model", model, "--structure", start, "--unix", name]
    atoms = water_row(1)
    expected = FixedPointSCF(model).get_property("forces", atoms)
    with SocketIOCalculator(unixsocket=name, log=None) as server:
        client = threading.Thread(target=example("ipi_client").main, args=(argv,))
        client.start()
        atoms.calc = server
        np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-6)
    client.join(timeout=20)


def test_the_first_hour_leaves_its_pictures(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    structure(tmp_path / "a.xyz", 2, False)
    options = ["--quick", "--structures", f"{tmp_path}/a.xyz", "--output", f"{tmp_path}"]
    paths = example("first_hour").main([model, *options])
    assert len(paths) == 4
    assert all(path.read_text().startswith("<?xml") for path in paths)
    assert "charge +1 e: energy" in capsys.readouterr().out
