"""Add polarizabilities by finite fields to labelled xTB configurations, in place.

    python make_polarizabilities.py FILE.xyz... --method GFN2-xTB --per_traj 2

In each trajectory (``traj``) the configurations without a field are numbered, and ``--per_traj``
of them, evenly spaced, get REF_polarizability (e A^2/V, row a column b = d(dipole_a)/dE_b of the
physical field E = -external_field) by central differences of the dipole over +-``--step`` along
each axis. The symmetric part is written. A configuration whose differences are less symmetric
than ``--tolerance`` times the mean of the diagonal is left unlabelled. Nothing else in the file
changes: labels of an earlier run are replaced, all other text is kept byte by byte.
"""

import argparse
import re
from pathlib import Path

import common as C
import numpy as np
from ase.io import read

KEY = "REF_polarizability"


def polarizability(atoms, method, step, accuracy):
    """[3, 3] e A^2/V, not symmetrised, by six calculations."""
    columns = []
    for axis in np.eye(3):
        plus, minus = (
            C.xtb_label(
                atoms,
                atoms.info["total_charge"],
                atoms.info.get("uhf", 0),
                sign * step * axis,
                method=method,
                accuracy=accuracy,
            )["dipole"]
            for sign in (1.0, -1.0)
        )
        columns.append(-(plus - minus) / (2.0 * step))
    return np.stack(columns, axis=-1)


def chosen(frames, per_traj):
    """Indices of ``per_traj`` field-free configurations of each trajectory, evenly spaced."""
    members = {}
    for index, atoms in enumerate(frames):
        if "traj" in atoms.info and not np.any(atoms.info["external_field"]):
            members.setdefault(int(atoms.info["traj"]), []).append(index)
    picked = []
    for group in members.values():
        places = np.linspace(0, len(group) - 1, min(per_traj, len(group))).round().astype(int)
        picked += [group[place] for place in sorted(set(places))]
    return sorted(picked)


def comment_lines(lines):
    """Line number of the comment of each configuration."""
    numbers, at = [], 0
    while at < len(lines):
        numbers.append(at + 1)
        at += int(lines[at]) + 2
    return numbers


def with_label(line, value):
    """The comment line with the label in place of an older one, or without any."""
    line = re.sub(rf' {KEY}="[^"]*"', "", line)
    if value is None:
        return line
    text = " ".join(f"{number:.6f}" for number in value.ravel())
    return f'{line} {KEY}="{text}"'


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("files", nargs="+", type=Path)
    p.add_argument("--method", default="GFN2-xTB", help="method of the other labels in the file")
    p.add_argument("--per_traj", type=int, default=2, help="labels per trajectory")
    p.add_argument("--step", type=float, default=0.002, help="field of the differences, V/A")
    p.add_argument("--accuracy", type=float, default=0.001, help="accuracy of tblite")
    p.add_argument("--tolerance", type=float, default=0.005, help="largest relative asymmetry")
    args = p.parse_args()
    for path in args.files:
        frames, found, worst = read(path, ":"), {}, 0.0
        for index in chosen(frames, args.per_traj):
            alpha = polarizability(frames[index], args.method, args.step, args.accuracy)
            asymmetry = np.abs(alpha - alpha.T).max() / np.trace(alpha) * 3.0
            if asymmetry > args.tolerance:
                print(f"{path} {index}: asymmetry {asymmetry:.1e}, left unlabelled")
                continue
            worst = max(worst, asymmetry)
            found[index] = 0.5 * (alpha + alpha.T)
        lines = path.read_text().split("\n")
        for index, number in enumerate(comment_lines(lines[:-1])):
            lines[number] = with_label(lines[number], found.get(index))
        path.write_text("\n".join(lines))
        lowest = min((np.linalg.eigvalsh(v)[0] for v in found.values()), default=np.nan)
        mean = np.mean([np.trace(v) / 3.0 for v in found.values()]) if found else np.nan
        print(
            f"{path}: {len(found)} of {len(frames)} labelled, mean {mean:.4f} e A^2/V, smallest "
            f"eigenvalue {lowest:.4f}, largest relative asymmetry {worst:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
