"""C source to callable functions: found compiler, libraries kept on disk, ranges over threads.

A library is compiled when first needed and kept in ``$XDG_CACHE_HOME/fpmace`` or
``~/.cache/fpmace`` under a name made of source, compiler, flags and processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from fpmace.errors import ConfigError

FLAGS = ("-O2", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-w")

VECTOR_BYTES = 64
"""Width of the vectors in the source; a compiler splits them where registers are narrower."""

C_TYPES = {torch.float64: "double", torch.float32: "float"}
"""Precisions that kernels are written for."""

Range = Callable[[int, int, Sequence[Tensor]], None]
"""A compiled function: works on items ``first`` to ``last`` of tensors."""


@cache
def find_compiler() -> tuple[str, ...] | None:
    """Command of a C compiler: ``$CC``, ``cc``, ``gcc``, ``clang`` or the package ``ziglang``."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and (path := shutil.which(name)):
            return (path,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "cc")
    return None


def missing_compiler() -> str:
    """What to do where :func:`find_compiler` finds none."""
    return (
        "no C compiler (CC, cc, gcc, clang) found; install one, or pip install 'fpmace[kernels]'"
    )


@cache
def compile_function(source: str) -> Range:
    """The function ``void run(long first, long last, void **pointers)`` of a source.

    Raises:
        ConfigError: there is no compiler, or it fails.
    """
    command = find_compiler()
    if command is None:
        raise ConfigError(missing_compiler(), where="kernels")
    key = "\n".join([source, *command, *FLAGS, _compiler_version(command), _processor()])
    path = _cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
    if not path.exists():
        _compile(command, source, path)
    function = ctypes.CDLL(str(path)).run
    function.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    function.restype = None

    def run(first: int, last: int, tensors: Sequence[Tensor]) -> None:
        addresses = [x.data_ptr() for x in tensors]
        function(first, last, (ctypes.c_void_p * len(addresses))(*addresses))

    return run


def run_threads(
    call: Range,
    n_items: int,
    least: int,
    operands: Sequence[Tensor],
    out: dict[int, Tensor],
    shared: Collection[int],
) -> None:
    """Run over all items, on as many threads as torch uses where each gets ``least`` items.

    Args:
        operands, out: what the function reads and what it adds to.
        shared: numbers of ``out`` that several items add to; each thread gets its own.
    """
    n_parts = max(1, min(torch.get_num_threads(), n_items // least))
    ends = [n_items * part // n_parts for part in range(n_parts + 1)]
    copies = [out]
    for _ in range(n_parts - 1):
        copies.append({n: torch.zeros_like(x) if n in shared else x for n, x in out.items()})
    tasks = [
        partial(call, first, last, [*operands, *copy.values()])
        for (first, last), copy in zip(pairwise(ends), copies, strict=True)
    ]
    if n_parts == 1:
        tasks[0]()
        return
    for future in [_pool(n_parts).submit(task) for task in tasks]:
        future.result()
    for n in shared:
        for copy in copies[1:]:
            out[n] += copy[n]


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads)


def _compile(command: tuple[str, ...], source: str, path: Path) -> None:
    """Compile under another name, then rename: nobody meets half a library."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        code, library = Path(folder) / "kernel.c", Path(folder) / "kernel.so"
        code.write_text(source)
        arguments = [*command, *FLAGS, "-o", str(library), str(code)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.splitlines()
            message = next((line for line in lines if "error" in line), "no message")
            raise ConfigError(
                f"{' '.join(command)} failed: {message}; use another compiler (CC) or "
                "kernels: torch",
                where="kernels",
            )
        library.replace(path)


@cache
def _cache_folder() -> Path:
    """Where libraries are kept; a temporary folder if the user's own cannot be written."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "fpmace"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="fpmace-"))


@cache
def _compiler_version(command: tuple[str, ...]) -> str:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


@cache
def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = [x for x in lines if x.startswith(("flags", "Features", "model name"))]
    return " ".join([platform.machine(), platform.processor(), *sorted(set(features))])
