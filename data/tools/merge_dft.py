"""Merge runs of make_water_clusters_dft.py, remove the net force of the grid,
and hold out every fifth trajectory.

    python merge_dft.py TRAIN.xyz TEST.xyz RUN.xyz...
"""

import sys

import common as C
import numpy as np
from ase.io import read


def main():
    train_path, test_path, runs = sys.argv[1], sys.argv[2], sys.argv[3:]
    atoms_frames, train, test, worst = [], [], [], []
    for r, path in enumerate(runs):
        for a in read(path, ":"):
            a.calc = None
            if a.info["config_type"] == "IsolatedAtom":
                atoms_frames.append(a)
                continue
            net = a.arrays["REF_forces"].sum(0) + a.info["total_charge"] * a.info["external_field"]
            worst.append(np.abs(net).max())
            a.arrays["REF_forces"] = a.arrays["REF_forces"] - net / len(a)
            a.info["net_force_removed"] = float(worst[-1])
            t = int(a.info["traj"])
            a.info["traj"] = 1000 * r + t
            if "pair_id" in a.info:
                a.info["pair_id"] = 1000 * r + int(a.info["pair_id"])
            a.info["config_dipole_weight"] = "1 1 1"
            (test if t % 5 == 4 else train).append(a)
    for a in atoms_frames:
        a.info["config_dipole_weight"] = "1 1 1"
    C.write_xyz(train_path, atoms_frames + train)
    C.write_xyz(test_path, atoms_frames + test)
    print(
        len(train),
        "train",
        len(test),
        f"test; net force: median {np.median(worst):.1e} max {max(worst):.1e} eV/A",
    )


if __name__ == "__main__":
    main()
