"""Turn extended XYZ into HDF5 shards; the same as the command ``fpmace-preprocess``."""

import sys

from fpmace.cli.preprocess import main

if __name__ == "__main__":
    sys.exit(main())
