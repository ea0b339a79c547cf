"""What the blocks of a fixed-point model are combined from."""

from __future__ import annotations

from typing import Any

PERCEPTRON = [4]
EMBEDDINGS: tuple[dict[str, Any], ...] = (
    {"type": "LinearPotentialEmbedding"},
    {"type": "BiasedLinearPotentialEmbedding"},
    {"type": "TanhPotentialEmbedding", "saturation": 2.0},
)
NONLINEARITIES: tuple[dict[str, Any], ...] = (
    {"type": "NoNonLinearity"},
    {"type": "MLPNonLinearity", "hidden_sizes": PERCEPTRON},
    {"type": "SkipMLPNonLinearity", "hidden_sizes": PERCEPTRON},
)
RULES: tuple[dict[str, Any], ...] = (
    {"type": "OneBodyVariableUpdate"},
    {"type": "ManyBodyUpdate", "radial_sizes": PERCEPTRON},
)
CHAIN = {"nonlinearity_cls": NONLINEARITIES[1], "radial_sizes": PERCEPTRON}
READOUTS: tuple[dict[str, Any], ...] = (
    {"type": "NullFieldReadout"},
    {"type": "StrictQuadraticFieldEnergyReadout", "n_channels": 2},
    {"type": "OneBodyMLPFieldReadout", "hidden_sizes": PERCEPTRON},
    {"type": "ManyBodyChargesReadout", **CHAIN},
    {"type": "ManyBodyChargesFieldReadout", **CHAIN},
)
MIXERS = ("AdditiveFieldMixer", "NoMixer", "UncoupledProductMixer")
INTERACTIONS = (
    "RealAgnosticDensityResidualInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
)
LOCAL = ("GatedLocalDensity", "ScaledLinearLocalDensity")
