"""Geometry optimisation; with three periodic directions the cell can relax too.

python docs/examples/optimise_geometry.py --model water.model --structure in.xyz --output out.xyz
"""

from __future__ import annotations

import argparse

from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import BFGS

from fpmace.calculators import FixedPointSCFCalculator
from fpmace.testing.systems import water_box


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--structure", help="structure to start from; 2 molecules if not given")
    parser.add_argument("--output", help="where to write the result")
    parser.add_argument("--fmax", type=float, default=0.01, help="eV/Angstrom")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cell", action="store_true", help="relax the cell too")
    given = parser.parse_args(argv)

    atoms = read(given.structure) if given.structure else water_box((2, 1, 1), pbc=given.cell)
    atoms.calc = FixedPointSCFCalculator(given.model, scf_options={"scf_tolerance": 1e-8})
    start = atoms.get_potential_energy()
    target = FrechetCellFilter(atoms) if given.cell else atoms
    optimiser = BFGS(target, logfile=None, maxstep=0.1)
    converged = optimiser.run(fmax=given.fmax, steps=given.steps)
    change = float(atoms.get_potential_energy() - start)
    state = "converged" if converged else "not converged"
    print(f"{state} after {optimiser.nsteps} steps, energy changed by {change:.4f} eV")
    if given.output:
        write(given.output, atoms)
    return change


if __name__ == "__main__":
    main()
