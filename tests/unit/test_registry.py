"""The registry: decorators, look-up, building, plugins."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

from fpmace import registry
from fpmace.annotations import Bounds, Doc, Unit
from fpmace.errors import ConfigError, RegistryError
from fpmace.registry import Part, PartConfig, build, declare_kind, normalise, register


@pytest.fixture(autouse=True)
def toy_kinds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two kinds of their own: rules that hold an embedding."""
    monkeypatch.setattr(registry, "_kinds", dict(registry._kinds))
    declare_kind("toy_rule", "toy rule", ("n_channels", "irreps"))
    declare_kind("toy_embedding", "toy embedding", ("n_channels",))

    @register("toy_embedding", "Plain")
    class Plain:
        """Adds nothing."""

        def __init__(self, *, n_channels: int, bias: bool = False) -> None:
            self.n_channels, self.bias = n_channels, bias

    @register("toy_rule", "OneBody")
    class OneBody:
        """One atom at a time.

        More text that a list does not show.
        """

        def __init__(
            self,
            *,
            n_channels: int,
            depth: int,
            scale: float = 1.0,
            widths: list[float] | None = None,
            embedding_cls: Annotated[PartConfig, Part("toy_embedding")] = "Plain",
        ) -> None:
            self.depth, self.scale, self.widths = depth, scale, widths
            self.embedding = build("toy_embedding", embedding_cls, n_channels=n_channels)

    return


def message(excinfo: pytest.ExceptionInfo[Exception]) -> str:
    text = str(excinfo.value)
    assert "\n" not in text
    return text


def test_build_passes_options_and_only_the_context_asked_for() -> None:
    rule = build("toy_rule", {"type": "OneBody", "depth": 2}, n_channels=8, irreps="8x0e")
    assert (rule.depth, rule.scale, rule.embedding.n_channels) == (2, 1.0, 8)


def test_nested_part_as_name_or_mapping() -> None:
    nested = {"type": "Plain", "bias": True}
    rule = build(
        "toy_rule", {"type": "OneBody", "depth": 1, "embedding_cls": nested}, n_channels=4
    )
    assert rule.embedding.bias is True
    by_name = normalise("toy_rule", {"type": "OneBody", "depth": 1, "embedding_cls": "Plain"})
    assert by_name["embedding_cls"] == {"type": "Plain", "bias": False}


def test_normalise_fills_defaults_and_is_idempotent() -> None:
    once = normalise("toy_rule", {"type": "OneBody", "depth": 1})
    assert once == {
        "type": "OneBody",
        "depth": 1,
        "scale": 1.0,
        "widths": None,
        "embedding_cls": {"type": "Plain", "bias": False},
    }
    assert normalise("toy_rule", once) == once


def test_used_parts_lists_nested_ones() -> None:
    found = registry.used_parts("toy_rule", {"type": "OneBody", "depth": 1})
    assert [item.name for item in found] == ["OneBody", "Plain"]


def test_summary_is_the_first_line() -> None:
    assert registry.get("toy_rule", "OneBody").summary == "One atom at a time."


def test_functions_are_factories_or_get_their_options_filled_in() -> None:
    @register("toy_embedding", "factory")
    def factory(*, size: int = 3) -> list[int]:
        """Make a list."""
        return [0] * size

    @register("toy_embedding", "function")
    def function(value: float, *, power: int = 2) -> float:
        """Raise to a power."""
        return value**power

    assert build("toy_embedding", {"type": "factory", "size": 2}) == [0, 0]
    assert build("toy_embedding", {"type": "function", "power": 3})(2.0) == 8.0


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ("OneBoddy", ["rule.type", "no toy rule named 'OneBoddy'", "did you mean 'OneBody'"]),
        ({"depth": 1}, ["rule.type", "missing", "OneBody"]),
        (3, ["rule", "expected a name or a mapping with 'type'", "OneBody"]),
        ({"type": "OneBody"}, ["rule.depth", "needs the option 'depth'", "depth: whole number"]),
        (
            {"type": "OneBody", "depth": 1, "scal": 2.0},
            ["rule.scal", "no option 'scal'", "did you mean 'scale'", "scale: number = 1.0"],
        ),
        (
            {"type": "OneBody", "depth": 1, "widths": ["a"]},
            ["rule.widths", "expects list of numbers or None", "['a']"],
        ),
        ({"type": "OneBody", "depth": 1.5}, ["rule.depth", "expects whole number", "1.5"]),
        ({"type": "OneBody", "depth": True}, ["rule.depth", "expects whole number", "True"]),
        (
            {"type": "OneBody", "depth": 1, "embedding_cls": "Plane"},
            ["rule.embedding_cls.type", "no toy embedding named 'Plane'", "'Plain'"],
        ),
        (
            {"type": "OneBody", "depth": 1, "embedding_cls": {"type": "Plain", "bias": 2}},
            ["rule.embedding_cls.bias", "true or false", "2"],
        ),
    ],
)
def test_messages_say_where_and_what(config: PartConfig, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as excinfo:
        build("toy_rule", config, where="rule", n_channels=4)
    for part in parts:
        assert part in message(excinfo)


def bounded_rule() -> type:
    """A registered rule whose options have ranges and follow from each other."""

    @register("toy_rule", "Bounded")
    class Bounded:
        """Numbers in ranges."""

        def __init__(
            self,
            *,
            cutoff: Annotated[float, Bounds(above=0), Unit("Angstrom"), Doc("reach")] = 5.0,
            widths: Annotated[tuple[int, ...], Bounds(minimum=1, filled=True)] = (4,),
            depth: int | None = None,
        ) -> None:
            self.cutoff, self.widths, self.depth = cutoff, widths, depth

        @staticmethod
        def complete_options(given: dict[str, Any]) -> dict[str, Any]:
            depth = len(given.get("widths", (4,)))
            if given.get("depth", depth) != depth:
                raise ConfigError(f"must be {depth}, the number of widths", where="depth")
            return {**given, "depth": depth}

    return Bounded


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cutoff": 0}, "cutoff: Bounded expects number above 0, got 0 "),
        ({"cutoff": "far"}, "cutoff: Bounded expects number, got 'far' "),
        ({"cutoff": float("nan")}, "cutoff: Bounded expects number above 0, got nan "),
        ({"widths": [4, 0]}, "non-empty list of whole numbers at least 1, got [4, 0] "),
        ({"widths": []}, "widths: Bounded expects non-empty list"),
        ({"depth": 3}, "depth: must be 1, the number of widths"),
        ({"dept": 3}, "dept: Bounded has no option 'dept'; did you mean 'depth'?"),
    ],
)
def test_constructor_and_configuration_check_what_the_annotation_says(
    options: dict[str, Any], text: str
) -> None:
    kind = bounded_rule()
    with pytest.raises(ConfigError) as configured:
        build("toy_rule", {"type": "Bounded", **options}, where="rule")
    assert text in message(configured)
    assert message(configured).startswith("rule.")
    if "dept" not in options:
        with pytest.raises(ConfigError) as constructed:
            kind(**options)
        assert f"rule.{message(constructed)}" == message(configured)


def test_options_follow_from_those_that_were_given() -> None:
    kind = bounded_rule()
    assert kind().depth == 1
    assert kind(widths=[2, 2]).depth == 2
    full = normalise("toy_rule", {"type": "Bounded", "widths": [2, 2], "cutoff": 3})
    assert full == {"type": "Bounded", "cutoff": 3.0, "widths": (2, 2), "depth": 2}
    assert normalise("toy_rule", full) == full
    option = registry.get("toy_rule", "Bounded").option("cutoff")
    assert option is not None
    assert option.meaning == "reach, Angstrom"
    assert option.describe() == "cutoff: number above 0 = 5.0"


def test_missing_context_is_named() -> None:
    with pytest.raises(ConfigError, match="OneBody needs n_channels"):
        build("toy_rule", {"type": "OneBody", "depth": 1})


def test_second_registration_is_an_error_unless_asked_for() -> None:
    class Other:
        """Other."""

    with pytest.raises(RegistryError, match=r"'Plain' is registered already by .*override=True"):
        register("toy_embedding", "Plain")(Other)
    register("toy_embedding", "Plain", override=True)(Other)
    assert registry.get("toy_embedding", "Plain").target is Other


def test_decorator_checks_the_constructor() -> None:
    class Positional:
        def __init__(self, depth: int) -> None: ...

    class Bare:
        def __init__(self, *, depth) -> None: ...  # type: ignore[no-untyped-def]

    class WrongDefault:
        def __init__(self, *, depth: int = "two") -> None: ...  # type: ignore[assignment]

    with pytest.raises(RegistryError, match="'depth': options must be keyword-only"):
        register("toy_rule", "A")(Positional)
    with pytest.raises(RegistryError, match="'depth': options must carry a type annotation"):
        register("toy_rule", "B")(Bare)
    with pytest.raises(RegistryError, match="default 'two' is not of the annotated type"):
        register("toy_rule", "C")(WrongDefault)


def test_base_class_is_demanded() -> None:
    class Base: ...

    registry.set_base("toy_rule", Base)
    with pytest.raises(RegistryError, match=r"must be a class derived from .*Base"):
        register("toy_rule", "D")(dict)


def test_unknown_kind() -> None:
    with pytest.raises(RegistryError, match=r"no kind of part 'update_rul'.*'update_rule'"):
        registry.names("update_rul")


PLUGIN = """
from __future__ import annotations
from fpmace.registry import register

@register("toy_embedding", "Mine")
class Mine:
    '''A user's own.'''
    def __init__(self, *, size: int = 1) -> None:
        self.size = size
"""


def test_plugin_file_registers_and_is_remembered(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "my_blocks.py"
    path.write_text(PLUGIN)
    registry.load_plugins([str(path)])
    registry.load_plugins([str(path)])
    entry = registry.get("toy_embedding", "Mine")
    assert entry.plugin == entry.source == str(path)
    assert registry.get("toy_embedding", "Plain").plugin is None
    assert build("toy_embedding", {"type": "Mine", "size": 4}).size == 4


def test_plugin_module_by_name(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "toy_plugin_module.py").write_text(PLUGIN.replace("Mine", "ByName"))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.load_plugins(["toy_plugin_module"])
    assert registry.get("toy_embedding", "ByName").plugin == "toy_plugin_module"


def test_entry_points_of_installed_packages(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "toy_installed_plugin.py").write_text(PLUGIN.replace("Mine", "Installed"))
    monkeypatch.syspath_prepend(str(tmp_path))
    point = importlib.metadata.EntryPoint("toy", "toy_installed_plugin", "fpmace.plugins")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    registry.load_entry_points()
    assert registry.get("toy_embedding", "Installed").source == "toy_installed_plugin"


def test_failing_plugin_leaves_nothing_behind(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "broken.py"
    path.write_text(PLUGIN.replace("Mine", "HalfDone") + "\nraise ValueError('oops')\n")
    with pytest.raises(ConfigError, match=r"plugins: importing '.*broken.py' failed: ValueError"):
        registry.load_plugins([str(path)])
    assert "HalfDone" not in registry.names("toy_embedding")


def test_plugin_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"plugins: no such file 'nowhere/blocks\.py'"):
        registry.load_plugins(["nowhere/blocks.py"])
    with pytest.raises(ConfigError, match="plugins: importing 'no_such_module_x' failed"):
        registry.load_plugins(["no_such_module_x"])


def test_plugin_module_name_is_the_same_in_every_process(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "stable.py"
    path.write_text("")
    code = textwrap.dedent(f"""
        from pathlib import Path
        from fpmace import registry
        print(registry._file_module_name(Path({str(path)!r})))
    """)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
