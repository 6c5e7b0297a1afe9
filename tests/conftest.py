from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import settings

torch.set_num_threads(1)  # small matrices; the suite runs in several processes instead
settings.register_profile("steepest", deadline=None, derandomize=True)  # a busy machine is no fault of the code
settings.load_profile("steepest")


KINDS = {"sgd", "adam", "muon", "scion", "shampoo", "soap", "galore", "adafactor", "dctadamw"}
"""Optimisers that differ in what an engine can see: entrywise, with roles of their own, with state of other shapes than
the parameter's, with chains in chains."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is `of_each_kind` runs with the others in the long run."""
    for item in items:
        if item.get_closest_marker("of_each_kind") and item.callspec.params["name"] not in KINDS:  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unconstrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the test has a geometry: an optimiser that is given bare ones need not look for it among all living
    modules, which takes tenths of a second in a process that has loaded as much as this one."""
    monkeypatch.setattr("steepest.optim.engine.constrained", lambda ids: iter(()))


@pytest.fixture
def gloo(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    if not dist.is_available() or dist.is_initialized():
        pytest.skip("needs a process group of its own")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
