"""fpmace: fixed-point self-consistent equivariant interatomic potentials."""

__version__ = "0.1.0"
