"""Systems with non-local charge transfer, GFN-xTB labels (nacl: GFN1, else GFN2).

    python make_charge_transfer_xtb.py SYSTEM OUT.xyz --seed 1 --count 400

SYSTEM   carbon : C10H2 (0) and C10H3 (+1) chains, half each
         nacl   : Na9Cl8 (+1), Na8Cl8 (+1, one Na removed) and Na8Cl8 (0)
         silver : Ag3 (+1) and Ag3 (-1), the same geometries for both charges
Modelled on the four systems of Ko et al., Nat. Commun. 12, 398 (2021); the
geometries and the labels here are our own.
"""

import argparse

import common as C
import numpy as np
from ase import Atoms


def chain(n_c=10, protonated=False):
    """A linear polyyne H-(C#C)n-H along z; protonated: CH2 at one end."""
    z, bonds = [0.0], [1.22 if k % 2 == 0 else 1.36 for k in range(n_c - 1)]
    for b in bonds:
        z.append(z[-1] + b)
    pos = [[0.0, 0.0, v] for v in z]
    sym = ["C"] * n_c
    sym.append("H")
    pos.append([0.0, 0.0, z[-1] + 1.06])
    if protonated:
        sym += ["H", "H"]
        pos += [[0.93, 0.0, -0.55], [-0.93, 0.0, -0.55]]
    else:
        sym.append("H")
        pos.append([0.0, 0.0, -1.06])
    return Atoms(sym, pos)


def nacl(kind, rng):
    """Fragments of rock salt: a 2 x 2 x 4 block, with one Na more or less."""
    a = 2.75
    sym, pos = [], []
    for i in range(2):
        for j in range(2):
            for k in range(4):
                sym.append("Na" if (i + j + k) % 2 == 0 else "Cl")
                pos.append([a * i, a * j, a * k])
    atoms = Atoms(sym, pos)
    if kind == "Na9Cl8":  # an extra Na on a Cl of either end
        ends = [n for n, s in enumerate(sym) if s == "Cl" and pos[n][2] in (0.0, 3 * a)]
        n = ends[rng.integers(len(ends))]
        up = 1.0 if pos[n][2] > 0 else -1.0
        atoms += Atoms("Na", [atoms.positions[n] + [0, 0, up * 2.6]])
    return atoms


def jobs(system, rng, lengths=(10,)):
    """Endless (name, atoms, charge, uhf, temperature, sampling keywords)."""
    while True:
        if system == "carbon":
            n = lengths[rng.integers(len(lengths))] if len(lengths) > 1 else lengths[0]
            kw = {"max_radius": 14.0}
            yield f"C{n}H2", chain(n), 0, 0, rng.uniform(200, 500), kw
            yield f"C{n}H3+", chain(n, True), 1, 0, rng.uniform(200, 500), kw
        elif system == "nacl":
            t = rng.uniform(100, 500)
            kw = {"timestep_fs": 4.0, "max_radius": 12.0, "every": 12, "equil": 40}
            yield "Na9Cl8+", nacl("Na9Cl8", rng), 1, 0, t, kw
            yield "Na8Cl8+", nacl("Na8Cl8", rng), 1, 1, t, kw
            yield "Na8Cl8", nacl("Na8Cl8", rng), 0, 0, t, kw
        else:
            tri = Atoms("Ag3", [[0, 0, 0], [2.75, 0, 0], [1.375, 2.38, 0]])
            lin = Atoms("Ag3", [[0, 0, 0], [2.75, 0, 0.1], [5.5, 0, 0]])
            kw = {"timestep_fs": 3.0}
            yield "Ag3+", tri, 1, 0, rng.uniform(200, 1200), kw
            yield "Ag3-", lin, -1, 0, rng.uniform(200, 1200), kw


def main():
    p = argparse.ArgumentParser()
    p.add_argument("system", choices=("carbon", "nacl", "silver"))
    p.add_argument("out")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--count", type=int, default=400)
    p.add_argument("--lengths", default="10", help="carbon: numbers of C atoms, comma separated")
    p.add_argument("--frames", type=int, default=20)
    args = p.parse_args()
    rng = np.random.default_rng(args.seed)
    species = {"carbon": ["H", "C"], "nacl": ["Na", "Cl"], "silver": ["Ag"]}[args.system]
    # GFN2 leaves Na9Cl8+ almost without a gap (0.2 eV), GFN1 does not (2.3 eV)
    method = "GFN1-xTB" if args.system == "nacl" else "GFN2-xTB"
    out, t = C.isolated_atoms(species, method=method), -1
    need = args.count + len(out)
    for name, atoms, charge, uhf, temp, kw in jobs(
        args.system, rng, tuple(int(v) for v in args.lengths.split(","))
    ):
        if len(out) >= need:
            break
        t += 1
        if args.system == "carbon" and rng.uniform() < 0.5:
            atoms.positions += rng.normal(size=atoms.positions.shape) * 0.05
        try:
            frames = C.sample_md(
                atoms,
                rng,
                charge,
                uhf,
                temp,
                args.frames,
                relax_steps=30,
                max_force=15.0,
                method=method,
                **dict({"every": 30, "equil": 100}, **kw),
            )
        except Exception as err:
            print("trajectory skipped:", name, err, flush=True)
            continue
        for atoms in frames:
            atoms = C.place(atoms, rng)
            charges = (1, -1) if args.system == "silver" else (charge,)
            labs = []
            try:
                for q in charges:
                    labs.append((q, C.xtb_label(atoms, q, uhf, method=method)))
            except Exception as err:
                print("configuration skipped:", name, err)
                continue
            if any(np.abs(lab["forces"]).max() > 15.0 for _, lab in labs):
                continue
            for q, lab in labs:
                cfg = {1: "Ag3+", -1: "Ag3-"}[q] if args.system == "silver" else name
                out.append(C.to_extxyz(atoms, lab, q, None, cfg, {"traj": t, "uhf": uhf}))
        print(name, len(out), flush=True)
        C.write_xyz(args.out, out[:need])
    C.write_xyz(args.out, out[:need])
    print("wrote", min(len(out), need))


if __name__ == "__main__":
    main()
