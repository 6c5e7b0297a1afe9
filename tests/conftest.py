import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # small matrices; the suite runs in several processes instead
settings.register_profile("steepest", deadline=None, derandomize=True)  # a busy machine is no fault of the code
settings.load_profile("steepest")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
