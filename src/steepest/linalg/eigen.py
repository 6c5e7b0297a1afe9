"""Eigenvalues and singular values, by whatever is fastest for the shape.

The results carry no derivative: the rules in `symmetric` do.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from steepest.linalg import small
from steepest.linalg.dispatch import is_small_batch
from steepest.linalg.threads import over_threads


def eigh(s: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `(*b, n)`, ascending, and eigenvectors `(*b, n, n)` of the Hermitian s `(*b, n, n)`, of which the
    lower triangle is read."""
    if is_small_batch(s):
        w, v = small.eigh(small.entries(s))
        return w.mT.unflatten(0, s.shape[:-2]), small.matrices(v, s.shape[:-2])
    return over_threads(torch.linalg.eigh, s)


def eigvalsh(s: Tensor) -> Tensor:
    """Eigenvalues alone."""
    return eigh(s)[0] if is_small_batch(s) else over_threads(torch.linalg.eigvalsh, s)


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin singular value decomposition, singular values descending."""
    return over_threads(partial(torch.linalg.svd, full_matrices=False), a)


def svdvals(a: Tensor) -> Tensor:
    """Singular values alone, descending."""
    return over_threads(torch.linalg.svdvals, a)
