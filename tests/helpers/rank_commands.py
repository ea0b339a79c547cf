"""Runs commands one after the other, in each process that torchrun starts.

Arguments: a JSON list of [module of ``fpmace.cli``, arguments].
"""

import importlib
import json
import sys

for module, arguments in json.loads(sys.argv[1]):
    status = importlib.import_module(f"fpmace.cli.{module}").main(arguments)
    if status:
        sys.exit(status)
