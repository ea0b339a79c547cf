"""A page without anything outside of it: headings, tables, text, drawings, in light and dark."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #ffffff; --soft: #5b6675;
  --line: #d9dee5; --panel: #f5f7fa; --accent: #2458a6; --alarm: #a33a12; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ef; --paper: #14181f; --soft: #9aa7b8;
  --line: #333c49; --panel: #1c222b; --accent: #7fb0f5; --alarm: #f0a27c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 24px 60px; max-width: 1240px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { margin: 28px 0 2px; font-size: 28px; } h2 { margin: 38px 0 8px; font-size: 20px;
  padding-bottom: 4px; border-bottom: 1px solid var(--line); } h3 { font-size: 16px; }
p, li { overflow-wrap: anywhere; } .soft, caption { color: var(--soft); }
nav { margin: 12px 0; } nav a { margin-right: 16px; white-space: nowrap; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
table { width: 100%; border-collapse: collapse; margin: 10px 0 18px; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 4px 0; }
th, td { padding: 4px 9px; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; } th { font-weight: 600; }
thead th { background: var(--panel); overflow-wrap: normal; } .number { text-align: right; }
figure { margin: 14px 0; } svg { width: 100%; height: auto; color: var(--ink); }
svg text { fill: currentColor; } .narrow svg { max-width: 760px; }
.warning { border-left: 4px solid var(--alarm); background: var(--panel); padding: 8px 14px;
  margin: 8px 0; overflow-wrap: anywhere; }
@media (max-width: 1100px) { section { overflow-x: auto; } }
code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        title: stands above it; may be empty.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""

    @classmethod
    def from_json(cls, values: dict[str, list[str]]) -> Table:
        return cls(values["columns"], values["rows"], str(values["title"]))

    def html(self) -> str:
        title = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        head = "".join(_cell("th", name, row=self._column(n)) for n, name in self._named())
        body = "".join(
            "<tr>"
            + "".join(
                _cell("td", value, row=self._column(number)) for number, value in enumerate(row)
            )
            + "</tr>"
            for row in self.rows
        )
        return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _named(self) -> list[tuple[int, str]]:
        return list(enumerate(self.columns))

    def _column(self, number: int) -> list[object]:
        return [row[number] for row in self.rows]


def _cell(tag: str, value: object, row: Sequence[object]) -> str:
    numeric = bool(row) and all(re.fullmatch(r"-|[-+\d.e]+|inf|nan", str(item)) for item in row)
    kind = ' class="number"' if numeric else ""
    return f"<{tag}{kind}>{escape(value)}</{tag}>"


def escape(value: object) -> str:
    """Text as it stands on the page; ``A`` for Angstrom as the sign."""
    text = "-" if value is None else str(value)
    return re.sub(r"(?<=[ /])A(?=[\^/,;)]|$)", "Å", html.escape(text)).replace("\n", "<br>")


@dataclass
class Page:
    """Sections one after the other, with a list of them at the top."""

    title: str
    subtitle: str = ""
    sections: list[tuple[str, list[str]]] = field(default_factory=list)

    def section(self, title: str, parts: Iterable[str]) -> None:
        """Add a section; one without parts is left out."""
        found = [part for part in parts if part]
        if found:
            self.sections.append((title, found))

    def html(self) -> str:
        """The whole page."""
        links = " ".join(
            f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title, _ in self.sections
        )
        body = "".join(
            f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{"".join(parts)}</section>\n'
            for title, parts in self.sections
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{escape(self.title)}</title>'
            f"<style>{_STYLE}</style></head>\n<body><h1>{escape(self.title)}</h1>"
            f'<p class="soft">{escape(self.subtitle)}</p><nav>{links}</nav>\n{body}'
            "</body></html>\n"
        )


def paragraph(text: object) -> str:
    """Text, or nothing for nothing."""
    return f"<p>{escape(text)}</p>" if text else ""


def warning(text: str) -> str:
    """Text that must not be missed."""
    return f'<p class="warning">{escape(text)}</p>'


def drawing(svg: str, *, narrow: bool = False) -> str:
    """A drawing as wide as the page, or half of it."""
    kind = ' class="narrow"' if narrow else ""
    return f"<figure{kind}>{svg}</figure>"


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")
