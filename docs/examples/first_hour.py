# %% [markdown]
# # The first hour
#
# A notebook as a script: editors (VS Code, PyCharm, Spyder) and Jupyter with jupytext show the
# cells that `# %%` begins. It needs a model, such as that of the quickstart, and leaves its
# pictures in a folder:
#
#     python docs/examples/first_hour.py runs/quickstart/quickstart.model --output pictures
"""From a trained model to energies, charge states, fields, vibrations and potentials."""

# %%
from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.optimize import BFGS
from matplotlib.figure import Figure

from fpmace.calculators import FixedPointSCFCalculator
from fpmace.observables.fields import ElectrostaticField
from fpmace.plots.canvas import save_figure
from fpmace.plots.fields import plot_lines
from fpmace.plots.scf_trajectory import plot_scf
from fpmace.testing.systems import water_box


# %% [markdown]
# ## A structure, a charge, a field
# Charge and field stand in `atoms.info`: e, and V/Å (gradient of the potential, minus the physical
# field).
# %%
def charge_states(model: str, atoms: Atoms) -> dict[float, np.ndarray]:
    """Atomic charges of a structure at total charges of -1, 0 and 1 e."""
    atoms.calc = FixedPointSCFCalculator(model)
    found = {}
    for charge in (-1.0, 0.0, 1.0):
        atoms.info["total_charge"] = charge
        energy = atoms.get_potential_energy()
        found[charge] = atoms.get_charges()
        level = atoms.calc.results["fermi_level"]
        print(f"charge {charge:+.0f} e: energy {energy:.3f} eV, Fermi level {level:.2f} eV")
    return found


# %% [markdown]
# ## How the self-consistency went
# %%
def passes(model: str, atoms: Atoms, path: Path) -> None:
    """Draw density change, charge error and level over the passes of two solvers."""
    runs = []
    for solver in ("linear", "anderson"):
        options = {"solver": solver, "history": "full_history", "on_failure": "ignore"}
        extra = {"mixing_parameter": 0.3} if solver == "linear" else {}
        atoms.calc = FixedPointSCFCalculator(model, scf_options={**options, **extra})
        atoms.get_potential_energy()
        runs.append((solver, dict(atoms.calc.results)))
    plot_scf(runs, path, tolerance=1e-6)


# %% [markdown]
# ## Charge against Fermi level
# An electrode holds the level, not the charge: `constant_charge: false`.
# %%
def charge_curve(model: str, atoms: Atoms, path: Path, n_points: int = 9) -> np.ndarray:
    """Total charge of a structure at a row of levels around that of the neutral one."""
    atoms = atoms.copy()
    atoms.calc = FixedPointSCFCalculator(model)
    atoms.get_potential_energy()
    neutral = float(atoms.calc.results["fermi_level"])
    levels = neutral + np.linspace(-4.0, 4.0, n_points)
    atoms.calc = FixedPointSCFCalculator(model, scf_options={"constant_charge": False})
    charges = []
    for level in levels:
        atoms.info["initial_fermi_level"] = level
        atoms.get_potential_energy()
        charges.append(atoms.get_charges().sum())
    draw_line(levels, charges, path, "Fermi level / eV", "total charge / e")
    return np.array([levels, charges])


# %% [markdown]
# ## Infrared spectrum
# Frequencies and intensities of a relaxed molecule, each line with a width of 15 cm⁻¹.
# %%
def spectrum(model: str, path: Path, *, relax_steps: int = 200) -> np.ndarray:
    """Wavenumbers, cm^-1, and intensities, km/mol, of a water molecule."""
    atoms = molecule("H2O")
    atoms.calc = FixedPointSCFCalculator(model)
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=relax_steps)
    (found,) = atoms.calc.response(["vibrations", "born_charges"]).vibrations
    assert found.intensities is not None
    lines, heights = found.frequencies.numpy(), found.intensities.numpy()
    axis = np.linspace(0.0, 4500.0, 1500)
    shape = 1.0 / (1.0 + ((axis[:, None] - lines) / 15.0) ** 2)
    draw_line(axis, shape @ heights, path, "wavenumber / cm$^{-1}$", "absorption / km/mol")
    return np.array([lines, heights])


# %% [markdown]
# ## The potential through a slab
# Averaged over planes, without and with a field along the normal.
# %%
def slab_potential(model: str, path: Path, *, repeat: tuple[int, int] = (2, 2)) -> None:
    """Draw the potential across a layer of water."""
    atoms = water_box((*repeat, 1), pbc=(True, True, False))
    atoms.cell[2, 2] = 20.0
    atoms.positions[:, 2] += 8.0
    atoms.calc = FixedPointSCFCalculator(model, pbc_handling="slab")
    lines = {}
    for field in (0.0, 0.02):
        atoms.info["external_field"] = [0.0, 0.0, field]
        atoms.get_potential_energy()
        source = ElectrostaticField.from_calculator(atoms.calc)
        lines[f"{field:g} V/Å"] = source.planar_average("potential", axis=2, n_points=160)
    plot_lines(lines, path, label="potential / V")


# %%
def draw_line(x: np.ndarray, y: object, path: Path, x_label: str, y_label: str) -> None:
    """One curve with named axes."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(x, y)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    save_figure(figure, path, dpi=110)


# %% [markdown]
# ## All of it
# %%
def main(argv: list[str] | None = None) -> list[Path]:
    """Do everything above; return the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="model file with a self-consistent density")
    parser.add_argument("--structures", default="data/quickstart/test.xyz")
    parser.add_argument("--output", type=Path, default=Path("pictures"))
    parser.add_argument("--quick", action="store_true", help="few points, no relaxation")
    given = parser.parse_args(argv)
    few = given.quick
    names = ("scf_passes", "charge_level", "ir_spectrum", "slab_potential")
    paths = [given.output / f"{name}.svg" for name in names]
    atoms = ase.io.read(given.structures, index=-1)
    charge_states(given.model, atoms.copy())
    passes(given.model, atoms.copy(), paths[0])
    charge_curve(given.model, molecule("H2O"), paths[1], n_points=3 if few else 9)
    spectrum(given.model, paths[2], relax_steps=2 if few else 200)
    slab_potential(given.model, paths[3], repeat=(1, 1) if few else (2, 2))
    print(*(f"written: {path}" for path in paths), sep="\n")
    return paths


if __name__ == "__main__":
    main()
