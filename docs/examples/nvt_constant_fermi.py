"""NVT dynamics at a constant Fermi level: the charge of the system fluctuates.

    python docs/examples/nvt_constant_fermi.py --model water.model --shift 0.2

The level is that of the neutral system plus a shift. Forces are derivatives of the printed energy
at this level, not of the grand potential; see the documentation of dynamics.
"""

from __future__ import annotations

import argparse

import numpy as np
from ase import units
from ase.io import read
from ase.md.langevin import Langevin

from fpmace.calculators import FixedPointSCFCalculator
from fpmace.testing.systems import water_box


def main(argv: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--structure", help="structure to start from; 2 molecules if not given")
    parser.add_argument("--shift", type=float, default=0.0, help="eV above the neutral level")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    given = parser.parse_args(argv)

    atoms = read(given.structure) if given.structure else water_box((2, 1, 1), pbc=False)
    neutral = FixedPointSCFCalculator(given.model)
    neutral.get_property("energy", atoms)
    level = neutral.results["fermi_level"] + given.shift
    atoms.info["initial_fermi_level"] = level
    atoms.calc = FixedPointSCFCalculator(given.model, scf_options={"constant_charge": False})

    rng = np.random.default_rng(0)
    widths = np.sqrt(atoms.get_masses() * units.kB * given.temperature)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * widths[:, None])
    dynamics = Langevin(
        atoms,
        given.timestep * units.fs,
        temperature_K=given.temperature,
        friction=0.02 / units.fs,
        fixcm=False,
        rng=rng,
    )
    charges: list[float] = []
    dynamics.attach(lambda: charges.append(atoms.calc.results["total_charge"]))
    dynamics.run(given.steps)
    print(
        f"Fermi level {level:.3f} eV held; charge {np.mean(charges):+.4f} e on average, ", end=""
    )
    print(f"standard deviation {np.std(charges):.4f} e")
    return charges


if __name__ == "__main__":
    main()
