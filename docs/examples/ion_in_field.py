"""An ion pulled through a cluster by an external field that grows.

    python docs/examples/ion_in_field.py --model ions.model --structure ion.xyz --ion 0

``external_field`` is the gradient of the potential felt by positive charge, so a cation moves
against it and an anion along it. The structure's ``total_charge`` must be in its info.
"""

from __future__ import annotations

import argparse

import numpy as np
from ase import units
from ase.io import read
from ase.md.langevin import Langevin

from fpmace.calculators import FixedPointSCFCalculator
from fpmace.testing.systems import water_box


def main(argv: list[str] | None = None) -> np.ndarray:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--structure", help="ion and surroundings; OH- of water if not given")
    parser.add_argument("--ion", type=int, default=0, help="index of the atom that is followed")
    parser.add_argument("--field", type=float, default=0.1, help="V/Angstrom at the end, along z")
    parser.add_argument("--stages", type=int, default=5, help="steps of the field")
    parser.add_argument("--steps", type=int, default=100, help="time steps per stage")
    parser.add_argument("--temperature", type=float, default=100.0, help="K")
    given = parser.parse_args(argv)

    if given.structure:
        atoms = read(given.structure)
    else:
        atoms = water_box((2, 1, 1), pbc=False)
        del atoms[1]
        atoms.info["total_charge"] = -1.0
    atoms.calc = FixedPointSCFCalculator(given.model)
    rng = np.random.default_rng(0)
    dynamics = Langevin(
        atoms,
        0.5 * units.fs,
        temperature_K=given.temperature,
        friction=0.05 / units.fs,
        fixcm=False,
        rng=rng,
    )
    path = []
    print("  field / V/A   z of the ion / A   charge / e   dipole along z / e A")
    for field in np.linspace(0.0, given.field, given.stages):
        # The field is read at every step: changing info is enough, the density is taken along.
        atoms.info["external_field"] = [0.0, 0.0, float(field)]
        dynamics.run(given.steps)
        path.append(atoms.positions[given.ion].copy())
        charge = atoms.get_charges()[given.ion]
        dipole = atoms.get_dipole_moment()[2]
        print(f"  {field:11.4f}   {path[-1][2]:16.3f}   {charge:10.3f}   {dipole:20.3f}")
    return np.array(path)


if __name__ == "__main__":
    main()
