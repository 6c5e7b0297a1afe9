"""Batches over threads: the numbers of the serial call, from any thread, also after a fork."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from steepest.linalg import threads
from steepest.linalg.dispatch import pays_in_threads

FUNCTIONS = {
    "eigh": torch.linalg.eigh,
    "eigvalsh": torch.linalg.eigvalsh,
    "svd": partial(torch.linalg.svd, full_matrices=False),
    "svdvals": torch.linalg.svdvals,
}


@pytest.fixture
def two_threads(monkeypatch):
    """As if torch had two: to set them changes how LAPACK works for the rest of the process."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def spd(*batch, n=16):
    a = torch.randn(*batch, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return a @ a.mT


def same(a, b):
    pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
    return all(x.shape == y.shape and bool((x == y).all()) and not x.requires_grad for x, y in pairs)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("batch", [(101,), (5, 21)])
def test_equal_serial(two_threads, name, batch):
    x, function = spd(*batch), FUNCTIONS[name]
    assert pays_in_threads(x)
    calls = []
    split = threads.over_threads(lambda t: (calls.append(len(t)), function(t))[1], x)
    assert len(calls) == 2
    assert same(split, function(x))


def test_what_is_not_split(two_threads):
    sizes = []
    count = lambda t: (sizes.append(t.shape), torch.linalg.eigvalsh(t))[1]  # noqa: E731
    for x in (spd(), spd(2), spd(1, n=40), spd(3, 0)):
        threads.over_threads(count, x)
    assert sizes == [(16, 16), (2, 16, 16), (1, 40, 40), (3, 0, 16, 16)]
    torch.func.vmap(partial(threads.over_threads, torch.linalg.eigvalsh))(spd(200))


def test_nobody_records_derivatives(two_threads):
    with torch.no_grad():
        assert not threads.over_threads(torch.linalg.eigvalsh, spd(101).requires_grad_()).requires_grad
    with torch.inference_mode():
        assert same(threads.over_threads(torch.linalg.eigvalsh, spd(101)), torch.linalg.eigvalsh(spd(101)))


def test_many_callers(two_threads):
    x = spd(101)
    expected = torch.linalg.eigvalsh(x)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: threads.over_threads(torch.linalg.eigvalsh, x), range(20)))
    assert all((f == expected).all() for f in found)


def test_after_a_fork(two_threads):
    """The pool of the parent has no threads in the child, where to wait for it would last for ever."""
    x = spd(101)
    threads.over_threads(torch.linalg.eigvalsh, x)
    child = os.fork()
    if not child:
        os._exit(0 if threads.over_threads(torch.linalg.eigvalsh, x).isfinite().all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
