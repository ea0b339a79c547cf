"""NVE dynamics of a water cluster: energy drift, and what extrapolating the density saves.

    python docs/examples/nve_water_cluster.py --model water.model --molecules 16 --ps 5

The cluster is relaxed and warmed with a thermostat, then runs on its own. Printed are the drift of
the total energy (slope of a straight line) in eV/atom/ps, its fluctuation about that line, and
the map evaluations and Jacobian products per step, with extrapolation and from a fresh start
on frames of the same trajectory.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from fpmace.calculators import FixedPointSCFCalculator
from fpmace.testing.systems import water_box


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--structure", help="cluster to start from; built if not given")
    parser.add_argument("--molecules", type=int, default=16)
    parser.add_argument("--ps", type=float, default=5.0, help="length of the NVE run")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=250.0, help="K, while warming")
    parser.add_argument("--warm_steps", type=int, default=1000)
    parser.add_argument("--relax_steps", type=int, default=100)
    parser.add_argument("--tolerance", type=float, default=1e-6, help="scf_tolerance")
    parser.add_argument("--solver", default="anderson")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trajectory", help="extended XYZ file, a frame every 20 fs")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def cluster(n: int) -> Atoms:
    """The n molecules of a random grid that are nearest to its centre."""
    edge = int(np.ceil(n ** (1 / 3)))
    atoms = water_box((edge, edge, edge), pbc=False)
    atoms.cell = None
    oxygens = atoms.positions[::3]
    order = np.argsort(np.linalg.norm(oxygens - oxygens.mean(0), axis=1))[:n]
    chosen = atoms[np.concatenate([[3 * i, 3 * i + 1, 3 * i + 2] for i in sorted(order)])]
    chosen.positions -= chosen.get_center_of_mass()
    return chosen


def work(calculator: FixedPointSCFCalculator) -> tuple[int, int]:
    return calculator.results["num_map_evaluations"], calculator.results["num_matvecs"]


def main(argv: list[str] | None = None) -> dict[str, float]:
    given = arguments().parse_args(argv)
    options = {
        "solver": given.solver,
        "scf_tolerance": given.tolerance,
        "charge_tolerance": given.tolerance,
        "on_failure": "raise",
    }
    model = {"model_path": given.model, "device": given.device, "scf_options": options}
    rng = np.random.default_rng(given.seed)
    atoms = read(given.structure) if given.structure else cluster(given.molecules)
    atoms.calc = FixedPointSCFCalculator(**model)
    FIRE(atoms, logfile=None).run(fmax=0.1, steps=given.relax_steps)
    widths = np.sqrt(atoms.get_masses() * units.kB * given.temperature)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * widths[:, None])
    step = given.timestep * units.fs
    Langevin(
        atoms,
        step,
        temperature_K=given.temperature,
        friction=0.02 / units.fs,
        fixcm=False,
        rng=rng,
    ).run(given.warm_steps)
    centre_velocity = atoms.get_momenta().sum(0) / atoms.get_masses().sum()
    atoms.set_velocities(atoms.get_velocities() - centre_velocity)

    n_steps = round(1000.0 * given.ps / given.timestep)
    every = max(round(20.0 / given.timestep), 1)
    energies, warm, cold = [], [], []
    fresh = FixedPointSCFCalculator(**model, restart="none")
    dynamics = VelocityVerlet(atoms, step)
    begun = time.perf_counter()
    for index in range(n_steps):
        dynamics.run(1)
        energies.append(atoms.get_total_energy())
        warm.append(work(atoms.calc))
        if index % every == 0:
            fresh.get_property("energy", atoms.copy())
            cold.append(work(fresh))
            if given.trajectory:
                write(given.trajectory, atoms, append=index > 0)
    seconds = time.perf_counter() - begun

    ps = 0.001 * given.timestep * np.arange(n_steps)
    slope, start = np.polyfit(ps, energies, 1)
    rest = np.array(energies) - (slope * ps + start)
    found = {
        "drift": slope / len(atoms),
        "fluctuation": rest.std() / len(atoms),
        "maps": float(np.mean(warm, axis=0)[0]),
        "products": float(np.mean(warm, axis=0)[1]),
        "maps_fresh": float(np.mean(cold, axis=0)[0]),
        "products_fresh": float(np.mean(cold, axis=0)[1]),
    }
    print(f"{len(atoms)} atoms, {n_steps} steps of {given.timestep} fs, {given.solver}, ", end="")
    print(f"scf_tolerance {given.tolerance:g}, final {atoms.get_temperature():.0f} K")
    print(f"drift of the energy        {found['drift']:+.2e} eV/atom/ps")
    print(f"fluctuation about it       {found['fluctuation']:.2e} eV/atom")
    print("per step                   map evaluations  Jacobian products")
    print(f"  with extrapolation       {found['maps']:15.2f}  {found['products']:17.2f}")
    print(
        f"  fresh start              {found['maps_fresh']:15.2f}  {found['products_fresh']:17.2f}"
    )
    print(f"time                       {1000.0 * seconds / n_steps:.0f} ms per step")
    return found


if __name__ == "__main__":
    main()
