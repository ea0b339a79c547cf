"""Water clusters and ions, GFN2-xTB labels.

python make_water_clusters_xtb.py OUT.xyz --seed 1 --traj 320 [--kind train|ood]
"""

import argparse

import common as C
import numpy as np

TRAIN = (
    [("water", ["H2O"] * n, w) for n, w in ((1, 1), (2, 2), (3, 2.5), (4, 2.5), (5, 2), (6, 2))]
    + [("h3o", ["H3O"] + ["H2O"] * n, w) for n, w in ((0, 0.5), (1, 1), (2, 1), (3, 1), (4, 1))]
    + [("oh", ["OH"] + ["H2O"] * n, w) for n, w in ((0, 0.3), (1, 1), (2, 1), (3, 1), (4, 1))]
    + [("na", ["Na"] + ["H2O"] * n, w) for n, w in ((1, 0.6), (2, 0.8), (3, 0.8), (4, 0.8))]
    + [("cl", ["Cl"] + ["H2O"] * n, w) for n, w in ((1, 0.6), (2, 0.8), (3, 0.8), (4, 0.8))]
)
# sizes and ion combinations that no training configuration has
OOD = [
    ("water8", ["H2O"] * 8, 2.0),
    ("h3o_7", ["H3O"] + ["H2O"] * 7, 1.5),
    ("oh_7", ["OH"] + ["H2O"] * 7, 1.5),
    ("na_7", ["Na"] + ["H2O"] * 7, 1.0),
    ("cl_7", ["Cl"] + ["H2O"] * 7, 1.0),
    ("nacl_4", ["Na", "Cl"] + ["H2O"] * 4, 1.5),
    ("na2_5", ["Na", "Na"] + ["H2O"] * 5, 1.0),
    ("h3o_cl_4", ["H3O", "Cl"] + ["H2O"] * 4, 1.0),
    ("cl2_5", ["Cl", "Cl"] + ["H2O"] * 5, 1.0),
]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--traj", type=int, default=330)
    p.add_argument("--frames", type=int, default=5)
    p.add_argument("--equil", type=int, default=200)
    p.add_argument("--every", type=int, default=60)
    p.add_argument("--kind", choices=("train", "ood"), default="train")
    args = p.parse_args()
    rng = np.random.default_rng(args.seed)
    table = TRAIN if args.kind == "train" else OOD
    weights = np.array([t[2] for t in table])
    out, pair, skipped = C.isolated_atoms(["H", "O", "Na", "Cl"]), 0, 0
    for t in range(args.traj):
        name, units, _ = table[rng.choice(len(table), p=weights / weights.sum())]
        temp = rng.uniform(200.0, 600.0)
        try:
            atoms, charge = C.pack_cluster(rng, units)
            frames = C.sample_md(
                atoms, rng, charge, 0, temp, args.frames, equil=args.equil, every=args.every
            )
        except Exception as err:  # an unconverged SCF ends the trajectory
            print("trajectory skipped:", err)
            skipped += 1
            continue
        for atoms in frames:
            atoms = C.place(atoms, rng)
            if rng.uniform() < 0.2:  # extra local disorder
                atoms.positions += rng.normal(size=atoms.positions.shape) * 0.03
            fields, extra = [None], {}
            u = rng.uniform()
            if u < 0.35:
                fields = [C.random_field(rng)]
            elif u < 0.43:  # the same geometry without and with the field
                fields = [None, C.random_field(rng)]
                extra = {"pair_id": pair}
                pair += 1
            for field in fields:
                lab = C.xtb_label(atoms, charge, 0, field)
                assert abs(lab["charges"].sum() - charge) < 1e-8
                assert np.allclose(lab["dipole"], lab["dipole_code"], atol=1e-6)
                if np.abs(lab["forces"]).max() > 25.0 or lab["gap"] < 1.0:
                    continue
                n_w = units.count("H2O")
                out.append(
                    C.to_extxyz(
                        atoms,
                        lab,
                        charge,
                        field,
                        f"{name.split('_')[0]}_w{n_w}",
                        dict(extra, traj=t),
                    )
                )
        if t % 30 == 29:
            print(t + 1, "trajectories,", len(out), "configurations", flush=True)
    C.write_xyz(args.out, out)
    print("wrote", len(out), "to", args.out, "skipped", skipped)


if __name__ == "__main__":
    main()
