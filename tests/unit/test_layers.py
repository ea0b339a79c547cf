"""Which room may import from which: only from rooms below, at any depth of the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fpmace

PACKAGE = Path(fpmace.__file__).parent
ROOT = PACKAGE.parent

LAYERS = [
    ["errors", "units", "parts", "__version__"],
    ["files", "distributed"],
    ["annotations", "archive", "boundaries", "devices"],
    ["part_entry"],
    ["registry"],
    ["data", "electrostatics", "scf"],
    ["differentiation"],
    ["density_modes"],
    ["blocks", "observables.types"],
    ["kernels"],
    ["models"],
    ["observables"],
    ["conversion", "metrics"],
    ["plots"],
    ["calculators"],
    ["config"],
    ["report"],
    ["training", "evaluation"],
    ["testing"],
    ["cli"],
]
"""From the bottom up; rooms on one line may not import each other."""

FORMER_HOMES = ["differentiation.modes", "training.residuals"]
"""Modules that only give names to what has moved up or down; nothing here may use them."""

KNOWN: set[str] = set()
"""Imports that break the rule and are not mended yet."""

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def room(module):
    """The longest prefix of a module's name (without ``fpmace.``) that is a room."""
    parts = module.split(".")
    return next(
        name for length in range(len(parts), 0, -1) if (name := ".".join(parts[:length])) in RANK
    )


def imports(path):
    """Modules of fpmace that a file imports, also inside functions and for type checking."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fpmace":
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fpmace."):
            yield node.module.removeprefix("fpmace.")
        elif isinstance(node, ast.Import):
            for item in node.names:
                if item.name.startswith("fpmace."):
                    yield item.name.removeprefix("fpmace.")


def violations():
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module in ("__init__", *FORMER_HOMES):
            continue
        for target in imports(path):
            mine, other = room(module.removesuffix(".__init__")), room(target)
            upward = mine != other and RANK[other] >= RANK[mine]
            if upward or target in FORMER_HOMES:
                yield f"{module} -> {target}"


def test_imports_point_downwards():
    assert set(violations()) == KNOWN


RUN = """
import sys
{code}
print(*sorted(name for name in sys.modules if name.startswith({prefixes})))
"""


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        (
            "import fpmace; fpmace.load_model({model!r})",
            ("fpmace.training", "fpmace.config", "fpmace.plots", "matplotlib", "schedulefree"),
        ),
        ("import fpmace", ("fpmace.models", "fpmace.data", "torch")),
    ],
)
def test_what_is_not_needed_is_not_imported(code, absent):
    model = ROOT / "tests" / "golden" / "data" / "model_files" / "v1_FixedPoint.model"
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(code=code.format(model=str(model)), prefixes=absent)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


def test_names_of_the_package_are_there():
    assert set(fpmace._HOMES) | {"__version__"} == set(fpmace.__all__) <= set(dir(fpmace))
    for name in fpmace.__all__:
        assert getattr(fpmace, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        fpmace.load_modle  # noqa: B018
