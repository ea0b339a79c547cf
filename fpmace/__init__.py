"""fpmace: fixed-point self-consistent equivariant interatomic potentials.

What a script needs is found here; it is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fpmace.calculators import (
        FixedPointSCFCalculator,
        GTOCoulombCalculator,
        MACECalculator,
    )
    from fpmace.config.load import load_config, resolve
    from fpmace.conversion.convert import convert_file
    from fpmace.data.dataset import make_loader, open_dataset
    from fpmace.errors import FpmaceError
    from fpmace.evaluation.evaluate import evaluate_file
    from fpmace.evaluation.options import EvaluationOptions
    from fpmace.models.io import load_model, save_model
    from fpmace.observables.fields import ElectrostaticField
    from fpmace.observables.predict import predict
    from fpmace.observables.response import compute_response
    from fpmace.scf.options import ScfOptions
    from fpmace.training.run import run_training

__version__ = "0.1.0"

_HOMES = {
    "ElectrostaticField": "fpmace.observables.fields",
    "EvaluationOptions": "fpmace.evaluation.options",
    "FixedPointSCFCalculator": "fpmace.calculators",
    "FpmaceError": "fpmace.errors",
    "GTOCoulombCalculator": "fpmace.calculators",
    "MACECalculator": "fpmace.calculators",
    "ScfOptions": "fpmace.scf.options",
    "compute_response": "fpmace.observables.response",
    "convert_file": "fpmace.conversion.convert",
    "evaluate_file": "fpmace.evaluation.evaluate",
    "load_config": "fpmace.config.load",
    "load_model": "fpmace.models.io",
    "make_loader": "fpmace.data.dataset",
    "open_dataset": "fpmace.data.dataset",
    "predict": "fpmace.observables.predict",
    "resolve": "fpmace.config.load",
    "run_training": "fpmace.training.run",
    "save_model": "fpmace.models.io",
}

__all__ = [
    "ElectrostaticField",
    "EvaluationOptions",
    "FixedPointSCFCalculator",
    "FpmaceError",
    "GTOCoulombCalculator",
    "MACECalculator",
    "ScfOptions",
    "__version__",
    "compute_response",
    "convert_file",
    "evaluate_file",
    "load_config",
    "load_model",
    "make_loader",
    "open_dataset",
    "predict",
    "resolve",
    "run_training",
    "save_model",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fpmace' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
