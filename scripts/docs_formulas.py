"""Hook of mkdocs: formulas of the documentation become MathML, which browsers draw themselves."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace the formulas of a page."""
    return _FORMULA.sub(_drawn, content)


def _drawn(found: re.Match[str]) -> str:
    """MathML of a formula; rows of ``aligned`` stand below each other."""
    display = "block" if found[2] == "[" else "inline"
    text = re.sub(r"\\(begin|end)\{aligned\}", "", html.unescape(found[3]))
    text = re.sub(r"([_^])(\\mathrm\{\w+\})", r"\1{\2}", text)
    rows = [re.sub(r"&\s*&", r"\\qquad ", row).replace("&", "") for row in text.split("\\\\")]
    return "\n".join(convert(row.strip(), display=display) for row in rows)
