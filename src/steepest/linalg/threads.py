"""Batches of factorisations over threads.

torch factors the matrices of a batch one after another in one thread, whatever `torch.set_num_threads` says, and calls
a LAPACK that has nothing to share out in a small matrix. So a batch is cut into as many parts as torch has threads. The
numbers are those of the serial call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from steepest.linalg.autograd import plain
from steepest.linalg.dispatch import pays_in_threads


def over_threads(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    """`function(x)`, which works off each matrix of x `(*b, m, n)` alone and returns a tensor or a tuple of them."""
    if x.ndim == 2 or not (plain(x) and pays_in_threads(x)):
        return function(x)
    if not x.is_cpu or (parts := torch.get_num_threads()) == 1:
        return function(x)
    # a worker does not know that this thread records no derivatives
    chunks = x.detach().flatten(0, -3).chunk(parts)
    results = list(_pool(parts, os.getpid()).map(function, chunks))
    if isinstance(results[0], Tensor):
        return torch.cat(results).unflatten(0, x.shape[:-2])
    return tuple(torch.cat(pieces).unflatten(0, x.shape[:-2]) for pieces in zip(*results, strict=True))


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Kept for the life of the process: threads do not survive a fork."""
    return ThreadPoolExecutor(threads, "steepest")
