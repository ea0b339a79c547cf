"""An ion pulled off a water molecule: energy against distance, for one or more models.

    python benchmarks/dissociation.py NAME=MODEL [NAME=MODEL ...] --output curve.svg

The energy is that of the pair less that of the ion alone and of the water alone, all by the
same model, so that it must go to zero as -1/r^2 (ion and dipole). A passive rule is drawn twice:
with one Fermi level, and with the charges of ion and molecule held. With tblite installed the
method of the labels (GFN2-xTB) is drawn too. Prints the table that the figure shows.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed

from fpmace.calculators import FixedPointSCFCalculator

DISTANCES = np.array(
    [1.8, 2.0, 2.2, 2.4, 2.7, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0, 10.0, 14.0, 20.0]
)
IONS = {"Na": 1.0, "Cl": -1.0}

Energy = Callable[[Atoms, float], float]


def pair(ion: str, distance: float) -> Atoms:
    """Water with the ion on its axis, a cation at the oxygen, an anion at the hydrogens.

    Args:
        distance: from the oxygen, Angstrom.
    """
    water = molecule("H2O")
    water.positions -= water.positions[0]
    axis = water.positions[1:].mean(0) / np.linalg.norm(water.positions[1:].mean(0))
    place = -axis * distance if IONS[ion] > 0 else axis * distance
    return water + Atoms(ion, positions=[place])


def of_model(path: str) -> dict[str, Energy]:
    """Energies in eV of a structure with a charge in e, by a model file; keys end its name."""
    calculator = FixedPointSCFCalculator(path, restart="none")
    found = {"": _energy(calculator)}
    if calculator.model.energy_is_stationary:
        held = FixedPointSCFCalculator(
            path, restart="none", scf_options={"charge_per": "fragment"}
        )
        found[", charges held"] = _energy(held)
    return found


def _energy(calculator: FixedPointSCFCalculator) -> Energy:
    def energy(atoms: Atoms, charge: float) -> float:
        atoms = atoms.copy()
        atoms.info["total_charge"] = charge
        ions = np.array([symbol in IONS for symbol in atoms.symbols])
        atoms.arrays["cluster_id"] = ions.astype(int)
        atoms.arrays["charges"] = np.where(ions, charge, 0.0)
        atoms.calc = calculator
        return float(atoms.get_potential_energy())

    return energy


def of_reference() -> Energy | None:
    """GFN2-xTB, or None where tblite is not installed."""
    try:
        from tblite.ase import TBLite
    except ImportError:
        return None

    def energy(atoms: Atoms, charge: float) -> float:
        atoms = atoms.copy()
        atoms.calc = TBLite(method="GFN2-xTB", charge=charge, verbosity=0)
        try:
            return float(atoms.get_potential_energy())
        except CalculationFailed:  # its own self-consistency, at large distances
            return float("nan")

    return energy


def curve(energy: Energy, ion: str) -> np.ndarray:
    """Interaction energy at :data:`DISTANCES`, eV."""
    charge = IONS[ion]
    apart = energy(Atoms(ion), charge) + energy(molecule("H2O"), 0.0)
    return np.array([energy(pair(ion, r), charge) - apart for r in DISTANCES])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--output", metavar="FILE", help="figure to write (.svg, .png)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    sources = {
        name + ending: energy
        for name, path in (item.split("=", 1) for item in arguments.models)
        for ending, energy in of_model(path).items()
    }
    reference = of_reference()
    if reference is not None:
        sources = {"GFN2-xTB": reference, **sources}
    curves = {ion: {name: curve(e, ion) for name, e in sources.items()} for ion in IONS}
    for ion, found in curves.items():
        print(f"\n{ion}{'+' if IONS[ion] > 0 else '-'} and water, eV")
        print("distance / A  " + "  ".join(f"{name:>12}" for name in found))
        for row, distance in enumerate(DISTANCES):
            values = "  ".join(f"{values[row]:12.3f}" for values in found.values())
            print(f"{distance:12.1f}  {values}")
    if arguments.output:
        draw(curves, arguments.output)


def draw(curves: dict[str, dict[str, np.ndarray]], path: str) -> None:
    """One panel per ion."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(9, 3.6), layout="constrained")
    for axis, (ion, found) in zip(axes, curves.items(), strict=True):
        for name, values in found.items():
            style = {"color": "black", "lw": 2} if name == "GFN2-xTB" else {"marker": "o", "ms": 3}
            axis.plot(DISTANCES, values, label=name, **style)
        axis.axhline(0.0, color="grey", lw=0.5)
        sign = "+" if IONS[ion] > 0 else "−"
        axis.set_xlabel(f"distance O–{ion} / Å")
        axis.set_ylabel("energy / eV")
        axis.set_title(f"{ion}$^{sign}$ and a water molecule")
        axis.set_ylim(-2.0, 2.0)
    axes[0].legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
