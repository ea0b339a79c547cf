"""One thread per test process: the models are tiny, and threads would only wait for each other."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("suite")


@pytest.fixture
def toy_model() -> Iterator[None]:
    """Registers the toy model, so that files of it can be written; removed again afterwards."""
    from toy_training import ToyModel

    from fpmace import registry

    registry.register_model("Toy")(ToyModel)
    yield
    registry.unregister("model", "Toy")
