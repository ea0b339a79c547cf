"""Self-consistency loops of runs over epochs; the same as ``fpmace-plot-scf``."""

import sys

from fpmace.cli.plot_scf import main

if __name__ == "__main__":
    sys.exit(main())
