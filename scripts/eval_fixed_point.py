"""The same as the installed command ``fpmace-eval``."""

import sys

from fpmace.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
