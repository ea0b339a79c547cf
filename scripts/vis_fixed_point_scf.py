"""Show the passes of one self-consistency loop; see ``--help``."""

import sys

from fpmace.cli.visualise_scf import main

if __name__ == "__main__":
    sys.exit(main())
