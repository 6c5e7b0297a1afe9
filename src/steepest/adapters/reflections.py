"""Products of Householder's reflections, all at once."""

from __future__ import annotations

import torch
from torch import Tensor


def reflect(u: Tensor, x: Tensor, *, inverse: bool = False) -> Tensor:
    """Rows of x `(*b, m, n)` times H_1 H_2 ... H_k, H_i the reflection along column i of u `(*b, n, k)`; with `inverse`
    times the transpose.

    By the compact form of the product, H_1 ... H_k = I - V T V^T with V the unit columns and T^-1 the upper triangle of
    V^T V with 1/2 on its diagonal (Schreiber and Van Loan 1989; Joffrain et al. 2006 for the inverse): two thin
    products and a triangle of k x k, where one reflection after the other takes 2 k passes over x, and the product as a
    matrix an n x n one.
    """
    with torch.autocast(u.device.type, enabled=False):  # half precision has no triangular solves
        v = u / torch.linalg.vector_norm(u, dim=-2, keepdim=True)
        gram = v.mT @ v
        half = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        triangle = torch.linalg.solve_triangular(gram.triu(1) + half / 2, half.expand_as(gram), upper=True)
    return x - (x @ v) @ (triangle.mT if inverse else triangle) @ v.mT


def paired(half: Tensor) -> Tensor:
    """Unit vectors `(*b, n, 2 k)`, along each of `half (*b, n, k)` twice in a row: their reflections cancel."""
    return (half / torch.linalg.vector_norm(half, dim=-2, keepdim=True)).repeat_interleave(2, dim=-1)
