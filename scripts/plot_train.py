"""Losses and errors of runs over epochs; the same as ``fpmace-plot-train``."""

import sys

from fpmace.cli.plot_train import main

if __name__ == "__main__":
    sys.exit(main())
