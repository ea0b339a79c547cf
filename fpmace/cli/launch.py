"""Entry points of the installed commands: interrupts are caught from the first import on."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from fpmace.cli.common import run_command


def _command(module: str) -> Callable[[], int]:
    return lambda: run_command(lambda: int(import_module(f"fpmace.cli.{module}").main()))


train = _command("train")
preprocess = _command("preprocess")
info = _command("info")
evaluate = _command("evaluate")
response = _command("response")
convert = _command("convert")
report = _command("report")
plot_train = _command("plot_train")
plot_scf = _command("plot_scf")
