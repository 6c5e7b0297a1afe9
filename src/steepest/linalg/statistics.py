"""Second moments of one side of a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.linalg.halves import gram, is_large


def average_gram(s: Tensor, y: Tensor, beta: float) -> Tensor:
    """s <- beta s + (1 - beta) y y^H in place, and with beta = 1 the sum s <- s + y y^H; y `(*b, n, k)`, and s `(*b, n,
    n)`, or `(*b, n)` for its diagonal alone. A y whose squares overflow leaves s as it would be for y = 0."""
    y = finite(y)
    weight = 1 - beta if beta < 1 else 1.0
    if s.ndim < y.ndim:
        return s.mul_(beta).add_((y.conj() * y).real.sum(-1), alpha=weight)
    if is_large(y):
        return s.mul_(beta).add_(gram(y), alpha=weight)
    if y.ndim == 2:
        return s.addmm_(y, y.mH, beta=beta, alpha=weight)
    if y.ndim == 3:
        return s.baddbmm_(y, y.mH, beta=beta, alpha=weight)
    return s.mul_(beta).add_(y @ y.mH, alpha=weight)


def finite(y: Tensor) -> Tensor:
    """y, or zero for a matrix the sum of whose squares is no finite number."""
    squares = torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True).square()
    return torch.where(squares.isfinite(), y, torch.zeros((), dtype=y.dtype, device=y.device))
