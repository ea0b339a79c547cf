"""The documentation: code runs, links lead somewhere, flags exist, every page can be found.

A fenced ``python`` block after a line ``<!-- runnable -->`` is run; the blocks of a page run one
after the other in one namespace, in a folder with ``data/`` and a small model where the quickstart
leaves one. All other ``python`` blocks must at least compile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from fpmace.data.keys import PROPERTIES
from fpmace.models.io import save_model
from fpmace.registry import build

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
FOREIGN_FLAGS = {
    "--strict",
    "--upgrade",
    "--version",
    "--help",
    "--index-url",
    "--logdir",
    "--master_addr",
    "--master_port",
    "--max-restarts",
    "--nnodes",
    "--node_rank",
    "--nproc_per_node",
    "--standalone",
}
"""Flags of other programs, and those that every command has."""


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def python_blocks(page: str) -> Iterator[tuple[bool, str]]:
    """(whether the block is to be run, its code) in the order of the page."""
    pattern = r"(<!-- runnable -->\s*\n)?^```python\n(.*?)^```"
    for found in re.finditer(pattern, text_of(page), re.DOTALL | re.MULTILINE):
        yield found.group(1) is not None, found.group(2)


def without_code(text: str) -> str:
    text = re.sub(r"^(`{3,})[^\n]*\n.*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: str) -> set[str]:
    """Ids that the headings of a page get on the site."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading))
        ascii_only = plain.encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", ascii_only.strip().lower()))
    return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository after the quickstart, with a smaller model."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "data").symlink_to(ROOT / "data")
    torch.manual_seed(0)
    model = build(
        "model",
        {
            "type": "FixedPoint",
            "atomic_numbers": [1, 8, 11, 17],
            "atomic_energies": [-10.7, -102.5, -4.5, -122.0],
            "r_max": 4.0,
            "hidden_irreps": "4x0e+4x1o",
            "MLP_irreps": "4x0e",
            "max_ell": 1,
            "correlation": 1,
            "radial_MLP": [8],
            "avg_num_neighbors": 8.0,
            "field_feature_norms": [12.0, 12.0, 1.0, 1.0],
            "pbc_handling": "realspace",
        },
    )
    (folder / "runs" / "quickstart").mkdir(parents=True)
    save_model(folder / "runs" / "quickstart" / "quickstart.model", model, {})
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if list(python_blocks(page))])
def test_python_blocks_run_or_compile(
    page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    namespace: dict[str, object] = {}
    for number, (runnable, code) in enumerate(python_blocks(page)):
        compiled = compile(code, f"{page}, block {number}", "exec")
        if runnable:
            exec(compiled, namespace)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_resolve(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (DOCS / page).parent / name if name else DOCS / page
        assert path.exists(), f"{page} links to {target}"
        assert path.resolve().is_relative_to(DOCS), f"{page} links out of the site: {target}"
        if anchor and path.suffix == ".md":
            known = anchors(path.resolve().relative_to(DOCS).as_posix())
            assert anchor in known, f"{page} links to {target}; headings: {sorted(known)}"


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "data/README.md"])
def test_links_of_the_repository_resolve(name: str) -> None:
    path = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target.partition("#")[0]).exists(), f"{name} links to {target}"


def known_flags() -> set[str]:
    """Options of the training, and flags that stand in the source of any command."""
    from fpmace.cli.preprocess import OPTIONS as PREPROCESSING
    from fpmace.config.schema import OPTIONS as TRAINING

    flags = {f"--{name}" for name in (*TRAINING, *PREPROCESSING)}
    for folder in ("fpmace/cli", "scripts", "benchmarks", "data/tools", "docs/examples"):
        for path in (ROOT / folder).glob("*.py"):
            source = path.read_text(encoding="utf-8")
            flags.update(re.findall(r"""["'](--[a-zA-Z][\w-]*)["']""", source))
    # Flags that are made from the names of properties, and both spellings of list-blocks.
    flags.update(f"--{name}_key" for name in (*PROPERTIES, "density", "NAME"))
    flags.update(flag.replace("_", "-") for flag in list(flags) if flag == "--list_blocks")
    return flags | FOREIGN_FLAGS


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page: str) -> None:
    code = " ".join(re.findall(r"`{1,3}[^`]+`{1,3}", text_of(page)))
    mentioned = set(re.findall(r"(?<![\w-])(--[a-zA-Z][\w-]*\w)", code))
    lines = [line for line in text_of(page).splitlines() if not line.lstrip().startswith("pip ")]
    mentioned &= set(re.findall(r"--[a-zA-Z][\w-]*\w", "\n".join(lines)))
    assert mentioned <= known_flags(), f"{page}: {sorted(mentioned - known_flags())}"


def nav_pages(item: object) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    elif isinstance(item, dict):
        for value in item.values():
            yield from nav_pages(value)
    elif isinstance(item, list):
        for value in item:
            yield from nav_pages(value)


def test_every_page_is_in_the_navigation_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = list(nav_pages(site["nav"]))
    assert len(listed) == len(set(listed))
    assert set(PAGES) <= set(listed), f"not in mkdocs.yml: {sorted(set(PAGES) - set(listed))}"


@pytest.mark.parametrize("page", PAGES)
def test_pages_begin_with_one_title(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
