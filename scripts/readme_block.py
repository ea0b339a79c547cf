"""Print the first fenced block under a heading of README.md: ``readme_block.py 'Test it'``."""

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def block(text: str, heading: str) -> str:
    """Return the commands of the first fenced block under ``heading``."""
    section = re.search(
        rf"^#+\s+{re.escape(heading)}\s*$(.*?)(?=^#+\s|\Z)",
        # A '#' inside a fence is a comment of the shell, not a heading.
        re.sub(r"(?s)```.*?```", lambda found: found.group().replace("\n#", "\n\0#"), text),
        re.MULTILINE | re.DOTALL,
    )
    fence = section and re.search(r"```[a-z]*\n(.*?)```", section.group(1), re.DOTALL)
    if not fence:
        raise SystemExit(f"error: README.md has no fenced block under the heading '{heading}'")
    return fence.group(1).replace("\0", "")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: readme_block.py HEADING")
    print(block(README.read_text(encoding="utf-8"), sys.argv[1]), end="")
