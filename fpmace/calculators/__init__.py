"""ASE calculators."""

from fpmace.calculators.base import ModelCalculator
from fpmace.calculators.coulomb import GTOCoulombCalculator
from fpmace.calculators.fixed_point import FixedPointSCF, FixedPointSCFCalculator
from fpmace.calculators.mace import MACECalculator

__all__ = [
    "FixedPointSCF",
    "FixedPointSCFCalculator",
    "GTOCoulombCalculator",
    "MACECalculator",
    "ModelCalculator",
]
