"""Thin water layers, periodic in x and y only (TTF), PBE/DZVP labels from CP2K.

    python make_water_slab_cp2k.py OUT.xyz --seed 1 --count 30 --minutes 12 [--bulk]

Geometries: 2-4 random water molecules in a 4.7-5.6 A square cell, pushed
apart by a few GFN1-xTB steps (sampling only).  Labels: cp2k_label.py with the
Martyna-Tuckerman 2D Poisson solver: the vacuum is field-free on average and
energies do not depend on its thickness (PSOLVER ANALYTIC of CP2K 2023.1 with
PERIODIC XY does: it behaved like a 3D cell).
--bulk writes fully periodic boxes (4-6 molecules) with stress instead.
"""

import argparse
import time

import common as C
import cp2k_label as L
import numpy as np
from ase import Atoms
from ase.optimize import FIRE
from make_periodic_xtb import water_box

VACUUM_CELL = 16.0  # at least twice the thickness of the layer


def layer(rng):
    n = int(rng.integers(2, 5))
    box = rng.uniform(4.7, 5.6)
    height = {2: 3.0, 3: 3.6, 4: 4.2}[n]
    cell = np.diag([box, box, VACUUM_CELL])
    for _ in range(400):
        atoms, heavy = Atoms(cell=cell, pbc=True), []
        for _k in range(n):
            for _ in range(200):
                c = rng.uniform(0, 1, 3) * [box, box, height]
                mol = Atoms(
                    "OH2", C.UNITS["H2O"][1] @ C.random_rotation(rng).T + c, cell=cell, pbc=True
                )
                if not heavy:
                    break
                d = (atoms + mol).get_all_distances(mic=True)[: len(atoms), len(atoms) :]
                if d.min() > 1.6 and d[heavy, 0].min() > 2.45:
                    break
            else:
                break
            heavy.append(len(atoms))
            atoms += mol
        if len(heavy) == n:
            return atoms
    raise RuntimeError("packing failed")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--count", type=int, default=30)
    p.add_argument("--minutes", type=float, default=12.0)
    p.add_argument("--bulk", action="store_true")
    args = p.parse_args()
    rng = np.random.default_rng(args.seed)
    out, start = [], time.time()
    while len(out) < args.count and time.time() - start < 60 * args.minutes:
        try:
            a = water_box(rng, int(rng.integers(4, 7))) if args.bulk else layer(rng)
            a.calc = C.XTBCalculator(0, 0, "GFN1-xTB")
            FIRE(a, logfile=None, maxstep=0.12).run(fmax=0.3, steps=int(rng.integers(8, 20)))
            a.calc = None
            a.positions += rng.normal(size=a.positions.shape) * rng.uniform(0.0, 0.04)
            if not args.bulk:
                a.positions[:, 2] += -a.positions[:, 2].mean() + VACUUM_CELL / 2
                if np.ptp(a.positions[:, 2]) > 8.0:
                    continue
                a.pbc = [True, True, False]
            t0 = time.time()
            lab = L.label(a, two_d=not args.bulk)
        except Exception as err:
            print("skipped", str(err)[-200:], flush=True)
            continue
        net = lab["forces"].sum(0)
        lab["forces"] = lab["forces"] - net / len(a)
        if np.abs(lab["forces"]).max() > 12.0:
            continue
        extra = {"net_force_removed": float(np.abs(net).max())}
        b = C.to_extxyz(
            a,
            lab,
            0,
            np.zeros(3),
            "water_bulk" if args.bulk else "water_slab",
            extra,
            dipole=not args.bulk,
        )
        if not args.bulk:
            # only the component along the vacuum is defined
            b.info["config_dipole_weight"] = "0 0 1"
        out.append(b)
        C.write_xyz(args.out, out)
        print(
            len(out),
            len(a),
            "%.0f s" % (time.time() - t0),
            "{:.1e}".format(lab["sum_q_error"]),
            f"net {np.abs(net).max():.2f}",
            flush=True,
        )
    print("done", len(out))


if __name__ == "__main__":
    main()
