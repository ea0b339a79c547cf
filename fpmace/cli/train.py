"""``fpmace-train``: train a model from YAML files and flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fpmace.cli.common import list_blocks, run_command
from fpmace.config.load import check_sources, collect, import_plugins
from fpmace.devices import check_device
from fpmace.distributed.join import joined


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; return the exit status.

    Args:
        argv: arguments without the program's name; those of the process if not given.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    return run_command(lambda: _train(arguments))


def _train(arguments: Sequence[str]) -> int:
    with joined() as group:
        sources = collect(arguments)
        if sources.switch("list_blocks"):
            import_plugins(sources)
            sources.raise_problems()
            print(list_blocks())
            return 0
        resolved = check_sources(sources)
        check_device(resolved.config.device)
        group.give_up_after(resolved.config.process_timeout)
        from fpmace.training.run import run_training

        result = run_training(resolved, group.process)
        if result.model_path is not None and group.process.writes:
            print(f"saved model: {result.model_path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
