"""Equivariant building blocks; importing this package registers the built-in ones."""
