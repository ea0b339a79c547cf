"""Split an extended XYZ file into parts, whole trajectories at a time.

    python data/tools/split_xyz.py INPUT.xyz OUTPUT_DIR --share train=0.8 valid=0.1 test=0.1

Every part gets each config_type in proportion; IsolatedAtom frames go to the first part. Shares
that sum to less than 1 leave the rest out. The frames are copied byte by byte.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fpmace.data.extxyz import read_frame_info, scan_frames
from fpmace.data.split import split_indices
from fpmace.files import atomic_write


def split_file(
    source: Path, output: Path, shares: dict[str, float], split_by: str, seed: int
) -> None:
    """Write ``output/NAME.xyz`` for each share."""
    frames = scan_frames(source)
    info = list(read_frame_info(source, frames))
    types = [str(item.get("config_type", "Default")) for item in info]
    groups = [str(item.get(split_by, "")) for item in info]
    rest = max(0.0, 1.0 - sum(shares.values()))
    parts = split_indices(groups, types, {**shares, "": rest}, seed)
    data = source.read_bytes()
    for name in shares:
        with atomic_write(output / f"{name}.xyz") as path:
            path.write_bytes(
                b"".join(
                    data[frames[i].offset : frames[i].offset + frames[i].n_bytes]
                    for i in parts[name]
                )
            )
        print(f"{output / name}.xyz: {len(parts[name])} configurations")


def share(text: str) -> tuple[str, float]:
    """Parse ``name=0.8``."""
    name, value = text.split("=")
    return name, float(value)


def main() -> None:
    """Parse the command line and split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--share", type=share, nargs="+", required=True, metavar="NAME=SHARE")
    parser.add_argument("--split_by", default="traj")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    split_file(args.source, args.output, dict(args.share), args.split_by, args.seed)


if __name__ == "__main__":
    main()
