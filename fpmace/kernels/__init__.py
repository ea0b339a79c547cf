"""Compiled kernels: C that is written for a model's blocks, compiled once and kept on disk."""
