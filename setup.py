"""Installation of fpmace; tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "fpmace" / "__init__.py").read_text(), re.MULTILINE
).group(1)

KERNELS = ["ziglang"]  # a C compiler, for machines without one
TENSORBOARD = ["tensorboard"]
WANDB = ["wandb"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "latex2mathml"]
TEST = ["pytest>=8", "pytest-xdist", "hypothesis>=6.100", *KERNELS, *TENSORBOARD, *WANDB, *DOCS]
DEV = [*TEST, *DOCS, "ruff==0.17.6", "mypy==2.4.1", "types-PyYAML", "types-tqdm"]

setup(
    name="fpmace",
    version=VERSION,
    description="Fixed-point self-consistent equivariant interatomic potentials",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["fpmace", "fpmace.*"]),
    package_data={"fpmace": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.5",
        "e3nn>=0.6",
        "torch-ema",
        "ase>=3.23",
        "matscipy",
        "numpy",
        "pyyaml",
        "h5py",
        "prettytable",
        "tqdm",
        "matplotlib",
        "schedulefree",
    ],
    extras_require={
        "torch-sim": ["torch-sim-atomistic"],
        "kernels": KERNELS,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "test": TEST,
        "docs": DOCS,
        "dev": DEV,
    },
    entry_points={
        "console_scripts": [
            "fpmace-train=fpmace.cli.launch:train",
            "fpmace-preprocess=fpmace.cli.launch:preprocess",
            "fpmace-info=fpmace.cli.launch:info",
            "fpmace-eval=fpmace.cli.launch:evaluate",
            "fpmace-response=fpmace.cli.launch:response",
            "fpmace-convert=fpmace.cli.launch:convert",
            "fpmace-report=fpmace.cli.launch:report",
            "fpmace-plot-train=fpmace.cli.launch:plot_train",
            "fpmace-plot-scf=fpmace.cli.launch:plot_scf",
        ]
    },
)
