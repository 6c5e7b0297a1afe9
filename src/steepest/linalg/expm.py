"""Exponentials of matrices of low rank."""

from __future__ import annotations

import torch
from torch import Tensor


def low_rank_expm1(p: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """(expm(P Q^H) - I) X for P, Q `(*b, n, k)` and X `(*b, n, m)`, in size k + m instead of n.

    It is P phi(Q^H P) Q^H X with phi(M) = (expm(M) - I) / M, and phi(M) R is the upper right block of
    expm([[M, R], [0, 0]]) (Higham 2008, Functions of Matrices, section 10.7.4): no factorisation, smooth everywhere.
    """
    k = p.shape[-1]
    top = torch.cat([q.mH @ p, q.mH @ x], -1)
    bottom = torch.zeros_like(top[..., :1, :]).expand(*top.shape[:-2], x.shape[-1], top.shape[-1])
    return p @ torch.linalg.matrix_exp(torch.cat([top, bottom], -2))[..., :k, k:]
