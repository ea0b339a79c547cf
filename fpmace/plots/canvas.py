"""Where drawn figures go: files, and SVG inside of pages."""

from __future__ import annotations

import io
import re
import zlib
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fpmace.files import atomic_write


def save_figure(figure: Figure, path: str | Path, *, dpi: int) -> None:
    """Write a figure; the suffix of the file chooses the format."""
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def svg(figure: Figure, name: str) -> str:
    """A figure as an ``<svg>`` element without background that takes the text colour of its page.

    Args:
        name: makes the identifiers inside unique on the page, and is read to those who cannot see.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None}, dpi=130)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, count=1, flags=re.DOTALL)
    text = _renamed(text, f"f{zlib.crc32(name.encode()):08x}")
    text = text.replace("#000000", "currentColor").replace("#ffffff", "transparent")
    head, _, body = text.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{name}">{body}'.strip()


def _renamed(text: str, prefix: str) -> str:
    """Identifiers that are referred to are numbered, with a prefix; the others go."""
    used = list(dict.fromkeys(re.findall(r'(?<=[("])#([\w.]+)', text)))
    names = {old: f"{prefix}-{number}" for number, old in enumerate(used)}

    def identifier(found: re.Match[str]) -> str:
        return f' id="{names[found[1]]}"' if found[1] in names else ""

    text = re.sub(r' id="([\w.]+)"', identifier, text)
    return re.sub(r"(?<=[(\"])#([\w.]+)", lambda found: f"#{names[found[1]]}", text)
