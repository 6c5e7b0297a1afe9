"""Products of which one half is known: Hermitian ones, and those of triangular matrices. On a CPU large ones are
computed in strips without the other half; elsewhere as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

STRIPS = 4
"""Of them, so that three eighths of a Hermitian product are saved."""
LARGE = 320
"""Sides from which strips are faster, in float32 on one core: at 384 by a tenth to two fifths, at 1024 by a third to
two thirds."""


def gram(y: Tensor, lower: bool = False) -> Tensor:
    """y y^H `(*b, n, n)` of y `(*b, n, k)`; with `lower`, y is lower triangular."""
    if not is_large(y):
        return y @ y.mH
    out = y.new_empty(*y.shape[:-1], y.shape[-2])
    for i, j in _strips(y.shape[-2]):
        k = j if lower else y.shape[-1]
        out[..., i:j, i:] = y[..., i:j, :k] @ y[..., i:, :k].mH
        out[..., i:j, :i] = out[..., :i, i:j].mH
    return out


def upper_product(q: Tensor, x: Tensor, upper: bool = False) -> Tensor:
    """q x `(*b, n, k)` of an upper triangular q `(*b, n, n)` and x `(*b, n, k)`, with `upper` upper triangular too."""
    if not is_large(q):
        return q @ x
    out = torch.zeros_like(x) if upper else torch.empty_like(x)
    for i, j in _strips(q.shape[-1]):
        start = i if upper else 0
        out[..., i:j, start:] = q[..., i:j, i:] @ x[..., i:, start:]
    return out


def is_large(x: Tensor) -> bool:
    """Whether strips are the faster way."""
    return x.is_cpu and x.shape[-2] >= LARGE


def _strips(n: int) -> Iterator[tuple[int, int]]:
    width = -(-n // STRIPS)
    return ((i, min(i + width, n)) for i in range(0, n, width))
