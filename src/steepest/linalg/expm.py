"""Exponentials of matrices of low rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def expm(a: Tensor) -> Tensor:
    """Matrix exponential of a `(*b, n, n)`, as expm(a + I) / e.

    For a single matrix that is small, of norm below 0.05 in float64 and 0.6 in float32, torch's own takes too few terms
    (its issue 196592: wrong by up to 2e-10 and 5e-5); a + I is never small.
    """
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return torch.linalg.matrix_exp(a + eye) / math.e


def low_rank_expm1(p: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """(expm(P Q^H) - I) X for P, Q `(*b, n, k)` and X `(*b, n, m)`, in size k + m instead of n.

    It is P phi(Q^H P) Q^H X with phi(M) = (expm(M) - I) / M, and phi(M) R is the upper right block of
    expm([[M, R], [0, 0]]) (Higham 2008, Functions of Matrices, section 10.7.4): no factorisation, smooth everywhere.
    """
    k = p.shape[-1]
    top = torch.cat([q.mH @ p, q.mH @ x], -1)
    bottom = torch.zeros_like(top[..., :1, :]).expand(*top.shape[:-2], x.shape[-1], top.shape[-1])
    return p @ expm(torch.cat([top, bottom], -2))[..., :k, k:]
