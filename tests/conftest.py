import pytest
import torch

torch.set_num_threads(1)  # small matrices; the suite runs in several processes instead


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
