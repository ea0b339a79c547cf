"""Bare ions, and ions at many distances from one water molecule, GFN2-xTB labels.

    python make_ions_xtb.py TRAIN.xyz --seed 61 --count 40 [--method GFN1-xTB --count 0]

Appends to a file of labelled configurations: Na+ and Cl- alone, then ``--count`` pairs of each
with water, placed at random, up to the distance where xTB converges by itself. Far from the
molecule xTB exchanges charge between Na+ and water, as every model with one Fermi level does;
pairs whose gap is below 1 eV are left out, so Na+ ends near 3.5 Angstrom.
"""

import argparse
import re
from pathlib import Path

import common as C
import numpy as np
from ase import Atoms

FARTHEST = {"Na": 4.0, "Cl": 12.0}


def pair(rng, ion):
    """Water, its atoms displaced a little, and the ion; dense where the energy changes."""
    _, water, _ = C.UNITS["H2O"]
    water = water + rng.normal(size=water.shape) * 0.04
    nearest = {"Na": 1.9, "Cl": 2.5}[ion]
    distance = nearest * (FARTHEST[ion] / nearest) ** rng.uniform()
    atoms = Atoms(f"OH2{ion}", np.vstack([water, distance * C.random_vector(rng)]))
    gaps = np.linalg.norm(atoms.positions[:3] - atoms.positions[3], axis=1)
    return atoms if gaps.min() > 0.8 * nearest else pair(rng, ion)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("file", type=Path)
    p.add_argument("--seed", type=int, default=61)
    p.add_argument("--count", type=int, default=40, help="pairs of each ion with water")
    p.add_argument("--method", default="GFN2-xTB")
    args = p.parse_args()
    rng = np.random.default_rng(args.seed)
    text = args.file.read_text()
    traj = max(map(int, re.findall(r" traj=(\d+)", text))) + 1
    out = []
    for ion in FARTHEST:
        charge = C.UNITS[ion][2]
        for number in range(args.count + 1):
            atoms = C.place(pair(rng, ion) if number else Atoms(ion, [[0.0, 0.0, 0.0]]), rng)
            try:
                lab = C.xtb_label(atoms, charge, method=args.method)
            except RuntimeError:  # no self-consistent solution
                continue
            if number and (lab["gap"] < 1.0 or np.abs(lab["forces"]).max() > 25.0):
                continue
            kind = f"{ion.lower()}_w{min(number, 1)}"
            out.append(C.to_extxyz(atoms, lab, charge, None, kind, {"traj": traj}))
            traj += 1
    added = args.file.with_suffix(".added")
    C.write_xyz(added, out)
    args.file.write_text(text + added.read_text())
    added.unlink()
    print("appended", len(out), "to", args.file)


if __name__ == "__main__":
    main()
