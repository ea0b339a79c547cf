"""The code in the pages on configuration and registry works and is current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fpmace.config.load import resolve
from fpmace.training.parameter_groups import GROUPS

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_example_file_is_the_one_shown() -> None:
    source = (DOCS / "examples" / "my_blocks.py").read_text()
    shown = blocks("registry.md", "python")[0]
    assert source.endswith(shown)


@pytest.mark.parametrize(
    "code", [*blocks("configuration.md", "python"), *blocks("registry.md", "python")[1:]]
)
def test_python_blocks_run(code: str) -> None:
    exec(compile(code, "docs", "exec"), {})


@pytest.mark.parametrize(
    "text", [*blocks("configuration.md", "yaml"), *blocks("registry.md", "yaml")]
)
def test_yaml_blocks_are_valid(text: str) -> None:
    resolve({"train_file": "water.xyz", **yaml.safe_load(text)})


def test_parameter_groups_are_listed() -> None:
    text = (DOCS / "configuration.md").read_text()
    for group in GROUPS:
        assert f"`{group}`" in text
