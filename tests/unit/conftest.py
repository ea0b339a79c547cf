"""Fixtures of the unit tests."""

from collections.abc import Iterator

import pytest
from toy_training import ToyModel

from fpmace import registry


@pytest.fixture
def toy_model() -> Iterator[None]:
    """Registers the toy model, so that files of it can be written; removed again afterwards."""
    registry.register_model("Toy")(ToyModel)
    yield
    registry.unregister("model", "Toy")
