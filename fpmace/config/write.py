"""Write a configuration as YAML that reproduces it."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from fpmace import __version__
from fpmace.annotations import plain
from fpmace.config.schema import TrainConfig, applicable_options


def to_yaml(config: TrainConfig, origins: Mapping[str, str]) -> str:
    """Every option that applies to the model, under its group, with where its value came from."""
    lines = [f"# Resolved configuration of fpmace {__version__}; give it to --config to repeat"]
    group = ""
    for item in applicable_options(config):
        if item.role.action:
            continue
        if item.group != group:
            group = item.group
            lines += ["", f"# {group}"]
        if item.name == "model":
            lines += _model_lines(config, origins)
        else:
            lines += _lines(item.name, getattr(config, item.name), origins.get(item.name))
    return "\n".join(lines) + "\n"


def _model_lines(config: TrainConfig, origins: Mapping[str, str]) -> list[str]:
    lines = ["model:"]
    for name, value in config.model_options.items():
        origin = origins.get(f"model.{name}")
        lines += [f"  {line}" for line in _lines(name, value, origin)]
    return lines


def _lines(name: str, value: object, origin: str | None) -> list[str]:
    value = plain(value)
    text = yaml.dump(
        {name: value},
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None if isinstance(value, (dict, list)) else False,
        allow_unicode=True,
        width=90,
    ).rstrip()
    if origin in (None, "default"):
        return text.split("\n")
    return [f"# {origin}", *text.split("\n")] if "\n" in text else [f"{text}  # {origin}"]


class _Dumper(yaml.SafeDumper):
    """Writes numbers so that both YAML 1.1 and 1.2 read them back, and no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _float)
