"""What all commands share: how they fail, and how they print parts."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable

from fpmace import registry
from fpmace.errors import FpmaceError

EXIT_FAILURE = 2
EXIT_INTERRUPTED = 130


def run_command(command: Callable[[], int]) -> int:
    """Run a command; failures that a user can mend become text on stderr and exit status 2."""
    try:
        return command()
    except FpmaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (``| head``); there is no one left to tell.
        sys.stderr.close()
        return 0


def list_blocks() -> str:
    """Every registered part by kind, with its options and one line of description."""
    lines: list[str] = []
    for kind in registry.kinds():
        entries = registry.describe(kind.name)
        if not entries:
            continue
        lines += ["", f"{kind.name} ({kind.what})", "-" * (len(kind.name) + len(kind.what) + 3)]
        for entry in entries:
            origin = f"  [{entry.source}]" if entry.source is not None else ""
            lines.append(f"  {entry.name}{origin}")
            lines += textwrap.wrap(
                entry.summary, 92, initial_indent="      ", subsequent_indent="      "
            )
            lines += [f"      - {option.describe()}" for option in entry.options]
    return "\n".join(lines).strip("\n")
