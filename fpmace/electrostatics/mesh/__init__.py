"""Sums on meshes, whose cost grows with the number of atoms."""

from fpmace.electrostatics.mesh.summation import MeshElectrostatics

__all__ = ["MeshElectrostatics"]
