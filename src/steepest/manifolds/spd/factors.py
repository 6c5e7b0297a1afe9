"""Cholesky factors, and positive definite matrices made of factors."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.linalg import sym


def cholesky(x: Tensor) -> Tensor:
    """The lower triangular L with positive diagonal and L L^H = x, `(*b, n, n)`; NaN where x is not positive
    definite."""
    L, info = torch.linalg.cholesky_ex(sym(x))
    return torch.where((info == 0)[..., None, None], L, torch.nan)


def square(m: Tensor) -> Tensor:
    """M M^H, Hermitian to the last bit, and positive definite wherever M is invertible."""
    return sym(m @ m.mH)


def whiten(L: Tensor, v: Tensor) -> Tensor:
    """L^-1 sym(V) L^-H, for a lower triangular L."""
    half = torch.linalg.solve_triangular(L, sym(v), upper=False)
    return sym(torch.linalg.solve_triangular(L, half.mH, upper=False))
