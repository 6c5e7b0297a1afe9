"""Cholesky factors, and positive definite matrices made of factors."""

from __future__ import annotations

from torch import Tensor

from steepest.linalg import products, sym
from steepest.linalg.autograd import plain


def cholesky(x: Tensor) -> Tensor:
    """The lower triangular L with positive diagonal and L L^H = x, `(*b, n, n)`; NaN where x is not positive
    definite."""
    return products.cholesky(x if plain(x) else sym(x))  # the other triangle matters to derivatives alone


def square(m: Tensor) -> Tensor:
    """M M^H, Hermitian to the last bit, and positive definite wherever M is invertible."""
    return sym(products.product(m, m.mH))


def whiten(L: Tensor, v: Tensor) -> Tensor:
    """L^-1 V L^-H, Hermitian to rounding, for a lower triangular L and Hermitian V."""
    return products.divide(products.divide(v, L).mH, L)
