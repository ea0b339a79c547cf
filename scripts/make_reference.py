"""Write docs/reference.md from the schema and the registry; ``--check`` only compares."""

import sys
from pathlib import Path

from fpmace.config.reference import reference_page

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"


def main() -> int:
    """Write or compare the page; return the exit status."""
    page = reference_page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") == page:
            return 0
        print("error: docs/reference.md is stale; run python scripts/make_reference.py")
        return 1
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
