"""Write a configuration as YAML that reproduces it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from fpmace import __version__
from fpmace.annotations import plain
from fpmace.config.schema import TrainConfig, applicable_options


def to_yaml(config: TrainConfig, origins: Mapping[str, str]) -> str:
    """Every option that applies to the model, under its group, with where its value came from."""
    lines = [f"# Resolved configuration of fpmace {__version__}; give it to --config to repeat"]
    group = ""
    for item in applicable_options(config):
        if item.meta.action:
            continue
        if item.group != group:
            group = item.group
            lines += ["", f"# {group}"]
        value = plain(getattr(config, item.name))
        text = yaml.dump(
            {item.name: value},
            Dumper=_Dumper,
            sort_keys=False,
            default_flow_style=None if isinstance(value, (dict, list)) else False,
            allow_unicode=True,
            width=90,
        ).rstrip()
        origin = origins.get(item.name, "default")
        if origin == "default":
            lines.append(text)
        elif "\n" in text:
            lines += [f"# {origin}", text]
        else:
            lines.append(f"{text}  # {origin}")
    return "\n".join(lines) + "\n"


class _Dumper(yaml.SafeDumper):
    """Writes numbers so that both YAML 1.1 and 1.2 read them back, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _float)
