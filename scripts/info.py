"""The same as the installed command ``fpmace-info``."""

import sys

from fpmace.cli.info import main

if __name__ == "__main__":
    sys.exit(main())
