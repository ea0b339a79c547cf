"""Checks of the generated sets: sums, units, duplicates, finite differences.

    python check_data.py FILE... [--fd N --method GFN2-xTB]

--fd N relabels N random configurations of each file with displaced atoms and
compares the central difference of the energy with REF_forces, and the
difference over the field with REF_dipole (xTB files only).
"""

import argparse

import common as C
import numpy as np
from ase import Atoms
from ase.io import read


def relabel(a, positions, field, method):
    b = Atoms(a.numbers, positions, cell=a.cell, pbc=a.pbc)
    return C.xtb_label(
        b, a.info["total_charge"], a.info.get("uhf", 0), field, method, accuracy=0.01
    )


def main():
    p = argparse.ArgumentParser()
    p.add_argument("files", nargs="+")
    p.add_argument("--fd", type=int, default=0)
    p.add_argument("--method", default="GFN2-xTB")
    args = p.parse_args()
    rng = np.random.default_rng(0)
    for name in args.files:
        frames = [a for a in read(name, ":") if a.info["config_type"] != "IsolatedAtom"]
        dq, dd, df, kinds, fields, charges = [], [], [], {}, 0, {}
        for a in frames:
            kinds[a.info["config_type"]] = kinds.get(a.info["config_type"], 0) + 1
            charges[float(a.info["total_charge"])] = (
                charges.get(float(a.info["total_charge"]), 0) + 1
            )
            e = np.asarray(a.info.get("external_field", np.zeros(3)))
            fields += bool(np.any(e))
            m = a.arrays.get("REF_atomic_multipoles")
            if m is not None:
                dq.append(abs(m[:, 0].sum() - a.info["total_charge"]))
                if "REF_dipole" in a.info:
                    mu = m[:, [3, 1, 2]].sum(0)
                    dd.append(np.abs(m[:, 0] @ a.positions + mu - a.info["REF_dipole"]).max())
            # the net force on a charge q in the field is q F = -q E_ext
            df.append(np.abs(a.arrays["REF_forces"].sum(0) + a.info["total_charge"] * e).max())
        f = np.concatenate([a.arrays["REF_forces"] for a in frames])
        print(f"{name}: {len(frames)} configurations, {fields} with a field, charges {charges}")
        print("   types", dict(sorted(kinds.items())))
        print(
            f"   max |sum Q - charge| {max(dq, default=0):.1e}"
            f"  max |sum(Q r + mu) - dipole| {max(dd, default=0):.1e} e*A"
            f"  max |sum F + q E_ext| {max(df):.1e} eV/A"
        )
        print(
            f"   forces rms {np.sqrt((f**2).mean()):.3f} max {np.abs(f).max():.2f} eV/A;"
            f" atoms {min(map(len, frames))}-{max(map(len, frames))}"
        )
        keys = {
            (
                a.get_chemical_formula(),
                a.positions.round(4).tobytes(),
                float(a.info["total_charge"]),
                np.asarray(a.info.get("external_field", 0)).tobytes(),
            )
            for a in frames
        }
        print("   distinct", len(keys))
        worst_f = worst_d = worst_e = 0.0
        for k in rng.choice(len(frames), size=min(args.fd, len(frames)), replace=False):
            a, h = frames[k], 5e-4
            field = np.asarray(a.info["external_field"])
            worst_e = max(
                worst_e,
                abs(relabel(a, a.positions, field, args.method)["energy"] - a.info["REF_energy"]),
            )
            for _ in range(2):
                i, c = rng.integers(len(a)), rng.integers(3)
                e = []
                for s in (1, -1):
                    x = a.positions.copy()
                    x[i, c] += s * h
                    e.append(relabel(a, x, field, args.method)["energy"])
                worst_f = max(
                    worst_f, abs(-(e[0] - e[1]) / (2 * h) - a.arrays["REF_forces"][i, c])
                )
            c, h = rng.integers(3), 1e-3
            e = [
                relabel(a, a.positions, field + s * h * np.eye(3)[c], args.method)["energy"]
                for s in (1, -1)
            ]
            worst_d = max(worst_d, abs((e[0] - e[1]) / (2 * h) - a.info["REF_dipole"][c]))
        if args.fd:
            print(
                f"   finite differences over {args.fd} configurations: energy {worst_e:.1e} eV,"
                f" force {worst_f:.1e} eV/A, dE/dE_ext - dipole {worst_d:.1e} e*A"
            )


if __name__ == "__main__":
    main()
