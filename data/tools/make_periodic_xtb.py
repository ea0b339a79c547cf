"""Periodic (TTT) cells, GFN1-xTB labels at the Gamma point: energy, forces,
stress, charges, atomic dipoles.  No total dipole (undefined in a bulk).

    python make_periodic_xtb.py OUT.xyz --seed 1 --scale 1.0

CAUTION: the lattice sums of tblite 0.8.0 treat the Klopman-Ohno interaction
with its slow 1/r^3 tail; energies of a slab keep changing with the vacuum
(see data/README.md).  Forces and stresses agree with finite differences of
the energy, so the set is a consistent surface for bulk cells, but it is no
reference for dipole or slab boundary conditions.
"""

import argparse

import common as C
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.optimize import FIRE


def strain(rng, a, size=0.04):
    m = np.eye(3) + 0.5 * size * rng.normal(size=(3, 3))
    m = 0.5 * (m + m.T)
    a.set_cell(a.cell.array @ m, scale_atoms=True)
    return a


def salt(rng, repeat, formula="NaCl", a0=5.64):
    a = bulk(formula, "rocksalt", a=a0, cubic=True) * repeat
    a = strain(rng, a, 0.03)
    a.positions += rng.normal(size=a.positions.shape) * rng.uniform(0.02, 0.18)
    return a


def water_box(rng, n_water, ions=()):
    """Random molecules at about 1 g/cm3 (ions: 30 A^3 each), pushed apart."""
    volume = 29.9 * n_water + 35.0 * len(ions)
    box = volume ** (1 / 3) * rng.uniform(0.97, 1.08)
    cell = np.eye(3) * box
    names = list(ions) + ["H2O"] * n_water
    for spread in np.linspace(1.0, 1.25, 40):
        cell = np.eye(3) * box * spread
        atoms = Atoms(cell=cell, pbc=True)
        heavy, ok = [], True
        for name in names:
            formula, pos, _ = C.UNITS[name]
            for _ in range(300):
                mol = Atoms(
                    formula,
                    pos @ C.random_rotation(rng).T + rng.uniform(0, 1, 3) @ cell,
                    cell=cell,
                    pbc=True,
                )
                if not heavy:
                    break
                test = atoms + mol
                n0 = len(atoms)
                d = test.get_all_distances(mic=True)[:n0, n0:]
                if d.min() > 1.65 and d[heavy, 0].min() > 2.45:
                    break
            else:
                ok = False
                break
            heavy.append(len(atoms))
            atoms += mol
        if ok:
            return atoms
    raise RuntimeError("packing failed")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--scale", type=float, default=1.0)
    p.add_argument("--method", default="GFN1-xTB")
    args = p.parse_args()
    rng = np.random.default_rng(args.seed)
    jobs = [("nacl_8", 50), ("nacl_64", 8), ("water_box", 50), ("nacl_water_box", 30)]
    out = C.isolated_atoms(["H", "O", "Na", "Cl"], method=args.method)
    for kind, count in jobs:
        done = 0
        while done < round(count * args.scale):
            try:
                if kind == "nacl_8":
                    a = salt(rng, 1)
                elif kind == "nacl_64":
                    a = salt(rng, 2)
                else:
                    n = int(rng.integers(4, 8))
                    a = water_box(rng, n, ("Na", "Cl") if kind == "nacl_water_box" else ())
                    a.calc = C.XTBCalculator(0, 0, args.method)
                    FIRE(a, logfile=None, maxstep=0.12).run(
                        fmax=0.3, steps=int(rng.integers(6, 16))
                    )
                    a.calc = None
                    a.positions += rng.normal(size=a.positions.shape) * rng.uniform(0.0, 0.04)
                lab = C.xtb_label(a, method=args.method, accuracy=0.1)
            except Exception as err:
                print("skipped", kind, str(err)[:80], flush=True)
                continue
            if np.abs(lab["forces"]).max() > 12.0 or lab["gap"] < 0.5:
                continue
            out.append(C.to_extxyz(a, lab, 0, np.zeros(3), kind, dipole=False))
            done += 1
        print(kind, done, flush=True)
        C.write_xyz(args.out, out)
    print("wrote", len(out))


if __name__ == "__main__":
    main()
