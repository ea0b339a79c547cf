"""The same as the installed command ``fpmace-train``."""

import sys

from fpmace.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
