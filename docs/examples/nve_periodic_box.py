"""NVE dynamics of a periodic box of water.

python docs/examples/nve_periodic_box.py --model water.model --steps 1000
"""

from __future__ import annotations

import argparse

import numpy as np
from ase import units
from ase.io import read
from ase.md.verlet import VelocityVerlet

from fpmace.calculators import FixedPointSCFCalculator
from fpmace.testing.systems import water_box


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--structure", help="box to start from; 8 molecules if not given")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K, at the start")
    given = parser.parse_args(argv)

    atoms = read(given.structure) if given.structure else water_box((2, 2, 2))
    atoms.calc = FixedPointSCFCalculator(given.model)
    rng = np.random.default_rng(0)
    widths = np.sqrt(atoms.get_masses() * units.kB * given.temperature)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * widths[:, None])
    centre_velocity = atoms.get_momenta().sum(0) / atoms.get_masses().sum()
    atoms.set_velocities(atoms.get_velocities() - centre_velocity)
    energies = []
    dynamics = VelocityVerlet(atoms, given.timestep * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    dynamics.run(given.steps)
    ps = 0.001 * given.timestep * np.arange(len(energies))
    drift = float(np.polyfit(ps, energies, 1)[0]) / len(atoms)
    print(f"{len(atoms)} atoms, drift {drift:+.2e} eV/atom/ps over {ps[-1]:.3f} ps")
    print(f"neighbour lists built {atoms.calc.neighbours.n_builds} times")
    return drift


if __name__ == "__main__":
    main()
