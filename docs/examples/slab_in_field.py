"""A slab in an external field along its normal: response of the charges and potential profile.

    python docs/examples/slab_in_field.py --model water.model --structure slab.xyz --plot slab.png

The structure has pbc "T T F", its third cell vector along z, and is not cut by the cell boundary.
"""

from __future__ import annotations

import argparse

import numpy as np
from ase.io import read

from fpmace.calculators import FixedPointSCFCalculator
from fpmace.observables.fields import ElectrostaticField, LineCut
from fpmace.plots.fields import plot_lines
from fpmace.testing.systems import water_box


def main(argv: list[str] | None = None) -> dict[str, LineCut]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--structure", help="slab; a layer of water if not given")
    parser.add_argument("--field", type=float, default=0.02, help="V/Angstrom along z")
    parser.add_argument("--plot", help="picture of the potential profiles")
    parser.add_argument("--points", type=int, default=200)
    given = parser.parse_args(argv)

    if given.structure:
        atoms = read(given.structure)
    else:
        atoms = water_box((2, 2, 1), pbc=(True, True, False))
        atoms.cell[2, 2] = 20.0
        atoms.positions[:, 2] += 8.0
    atoms.calc = FixedPointSCFCalculator(given.model)
    profiles = {}
    dipoles = {}
    for field in (0.0, given.field):
        atoms.info["external_field"] = [0.0, 0.0, field]
        atoms.get_potential_energy()
        dipoles[field] = atoms.get_dipole_moment()[2]
        name = f"{field:g} V/A"
        profiles[name] = ElectrostaticField.from_calculator(atoms.calc).planar_average(
            "potential", axis=2, n_points=given.points
        )
    area = np.linalg.norm(np.cross(atoms.cell[0], atoms.cell[1]))
    # The physical field is minus external_field.
    response = (dipoles[given.field] - dipoles[0.0]) / -given.field / area
    print(f"dipole along z: {dipoles[0.0]:.4f} e A, in the field {dipoles[given.field]:.4f} e A")
    print(f"polarisability per area {response:.4f} e/V")
    if given.plot:
        plot_lines(profiles, given.plot, label="potential / V")
        print(f"written: {given.plot}")
    return profiles


if __name__ == "__main__":
    main()
