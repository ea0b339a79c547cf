"""Response properties of the structures of a file; the same as ``fpmace-response``."""

import sys

from fpmace.cli.response import main

if __name__ == "__main__":
    sys.exit(main())
