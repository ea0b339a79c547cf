"""One thread per test process: the models are tiny, and threads would only wait for each other."""

import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("suite")
