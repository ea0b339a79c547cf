"""The same as the installed command ``fpmace-convert``."""

import sys

from fpmace.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
