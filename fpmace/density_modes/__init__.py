"""Density modes: how a model's density is found, and how derivatives are attached to it.

A mode pairs a solve with a differentiation. A stage of a training names one (``mode: implicit``),
and so do evaluation and calculators (``scf``). New ones are registered with
:func:`fpmace.registry.register_density_mode`.
"""
