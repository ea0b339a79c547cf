"""The documentation as a reader sees it: built, and looked at in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import measure_pages

ROOT = Path(__file__).parents[2]
PAGES = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "latex2mathml"):
        pytest.importorskip(package, reason=f"{package} is in the extra [docs]")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_pages_hold_what_they_need(site: Path) -> None:
    for page in PAGES:
        text = (site / page).with_suffix(".html").read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img)[^>]*src="(http[^"]+)"', text)
        loaded += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="(http[^"]+)"', text)
        assert not loaded, page
        assert "arithmatex" not in text, page
        for image in re.findall(r'<img[^>]*src="([^"]+)"', text):
            assert ((site / page).parent / image).is_file(), f"{page}: {image}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("width", [1280, 1920])
def test_no_table_is_clipped(site: Path, tmp_path: Path, width: int) -> None:
    pages = [page.removesuffix(".md") + ".html" for page in PAGES]
    found, console = measure_pages(site, pages, tmp_path, width=width)
    assert console == ""
    assert set(found) == set(pages)
    for page, seen in found.items():
        assert seen["content"] <= seen["width"], page
        assert seen["clipped"] == [], page
    assert found["families.html"]["maths"] >= 10
    assert found["quickstart.html"]["coloured"] >= 10
    assert sum(seen["tables"] for seen in found.values()) > 100
