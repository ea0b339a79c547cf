"""NPT dynamics of a periodic box of water.

    python docs/examples/npt_box.py --model water.model --steps 1000

Use a model with ``kspace_window`` above 0: the reciprocal-space sum is then smooth as the cell
changes.
"""

from __future__ import annotations

import argparse

import numpy as np
from ase import units
from ase.io import read
from ase.md.nptberendsen import NPTBerendsen

from fpmace.calculators import FixedPointSCFCalculator
from fpmace.testing.systems import water_box


def main(argv: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--structure", help="box to start from; 8 molecules if not given")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--pressure", type=float, default=1.0, help="bar")
    given = parser.parse_args(argv)

    atoms = read(given.structure) if given.structure else water_box((2, 2, 2))
    atoms.calc = FixedPointSCFCalculator(given.model)
    rng = np.random.default_rng(0)
    widths = np.sqrt(atoms.get_masses() * units.kB * given.temperature)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * widths[:, None])
    dynamics = NPTBerendsen(
        atoms,
        given.timestep * units.fs,
        temperature_K=given.temperature,
        pressure_au=given.pressure * units.bar,
        taut=100.0 * units.fs,
        taup=1000.0 * units.fs,
        compressibility_au=4.6e-5 / units.bar,
    )
    volumes: list[float] = []
    dynamics.attach(lambda: volumes.append(atoms.get_volume()))
    dynamics.run(given.steps)
    mass = atoms.get_masses().sum() / units.kg
    density = mass / (np.mean(volumes) * 1e-30)
    print(f"volume {volumes[0]:.2f} to {volumes[-1]:.2f} A^3, mean density {density:.0f} kg/m^3")
    return volumes


if __name__ == "__main__":
    main()
