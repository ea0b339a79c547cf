"""Electrostatics of Gaussian multipoles in all boundary conditions."""

from fpmace.electrostatics.gto import GTOElectrostatics
from fpmace.electrostatics.options import PBC_METHODS, ElectrostaticsOptions
from fpmace.electrostatics.plan import Plan

__all__ = ["PBC_METHODS", "ElectrostaticsOptions", "GTOElectrostatics", "Plan"]
