import pytest
import torch
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
