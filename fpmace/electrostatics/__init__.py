"""Electrostatics of Gaussian multipoles in all boundary conditions."""

from fpmace.boundaries import PBC_METHODS
from fpmace.electrostatics.base import Capabilities, Electrostatics, build_electrostatics
from fpmace.electrostatics.gto import GTOElectrostatics
from fpmace.electrostatics.options import ElectrostaticsOptions
from fpmace.electrostatics.plan import BatchGeometry, Plan
from fpmace.electrostatics.simple import SimplePlan

__all__ = [
    "PBC_METHODS",
    "BatchGeometry",
    "Capabilities",
    "Electrostatics",
    "ElectrostaticsOptions",
    "GTOElectrostatics",
    "Plan",
    "SimplePlan",
    "build_electrostatics",
]
