"""Products of matrices, and triangular factors, by whatever is fastest for the shape."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.linalg import small
from steepest.linalg.autograd import plain
from steepest.linalg.dispatch import is_small_batch


def product(a: Tensor, b: Tensor) -> Tensor:
    """A B, of `(*b, n, k)` and `(*b, k, m)`."""
    if is_small_batch(a) and a.shape[:-2] == b.shape[:-2]:
        return small.matrices(small.product(small.entries(a), small.entries(b)), a.shape[:-2])
    return a @ b


def congruence(v: Tensor, core: Tensor) -> Tensor:
    """V core V^H; with v.mH for v, a matrix in the eigenbasis V."""
    return product(product(v, core), v.mH)


def add_product(c: Tensor, a: Tensor, b: Tensor, alpha: float = 1, *, beta: float = 1) -> Tensor:
    """beta C + alpha A B, of `(*b, n, m)`, `(*b, n, k)` and `(*b, k, m)`."""
    if a.ndim == b.ndim == c.ndim == 2 and a.dtype == c.dtype:
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    if not a.shape[:-2] == b.shape[:-2] == c.shape[:-2] or a.dtype != c.dtype or is_small_batch(a):
        return torch.add(c if beta == 1 else beta * c, product(a, b), alpha=alpha)
    if a.ndim == 3:
        return torch.baddbmm(c, a, b, beta=beta, alpha=alpha)
    flat = torch.baddbmm(c.flatten(0, -3), a.flatten(0, -3), b.flatten(0, -3), beta=beta, alpha=alpha)
    return flat.view(c.shape)


def cholesky(x: Tensor) -> Tensor:
    """The lower triangular L with positive diagonal and L L^H = x, `(*b, n, n)`, of which the lower triangle is read;
    NaN where x is not positive definite."""
    if is_small_batch(x):
        return small.matrices(small.cholesky(small.entries(x)), x.shape[:-2])
    L, info = torch.linalg.cholesky_ex(x)
    if x.is_cpu and plain(x) and not (info.max() if info.ndim else info).item():
        return L
    return torch.where((info == 0)[..., None, None], L, torch.nan)


def divide(b: Tensor, L: Tensor) -> Tensor:
    """B L^-H, of `(*b, m, n)` and a lower triangular L `(*b, n, n)`: of the triangular solutions the one that LAPACK
    needs no copy for."""
    if is_small_batch(b) and is_small_batch(L) and b.shape[:-2] == L.shape[:-2]:
        return small.matrices(small.solve(small.entries(L), small.entries(b.mT)), b.shape[:-2]).mT
    return torch.linalg.solve_triangular(L.mH, b, upper=True, left=False)
