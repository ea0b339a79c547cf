"""Recompute reference numbers under a directory and print how far off we are.

Usage: python scripts/verify_golden.py DIRECTORY

DIRECTORY holds any of the folders electrostatics, mace_backbone, fixed_point, foundation. One
line per case and quantity is printed.
The last line is ``N pass, N FAIL, N unsupported``; the exit code is 1 if anything failed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from verification.command import main

if __name__ == "__main__":
    sys.exit(main())
