"""Balanced factors of the same product."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.linalg.precision import double


@torch.no_grad()
def refactor_(b: Tensor, a: Tensor) -> None:
    """Replace the factors of W = B A, B `(*b, m, r)` and A `(*b, r, n)`, by U sqrt(S) and sqrt(S) V^H with U S V^H = W,
    in place: the same W, and the best conditioned factors.

    By QR of both factors and an SVD of r x r numbers, in float64; no product of m x n entries. A product of lower rank
    than r, as B = 0 of LoRA's start, is left alone: of a singular value that is zero both factors' vectors would be
    zero, and so would be their gradients ever after. An optimiser's momentum belongs to the old factors: see `Restart`.
    On `FixedRank` none of this is needed by methods that do not act on entries, as their steps do not depend on the
    choice of factors.

    "Weight refactorization" of Glentis et al. 2025 (2505.22922), every 200 steps there, with a reset of the moments.

    >>> b, a = 1e3 * torch.randn(6, 2), torch.randn(2, 5)
    >>> w = b @ a
    >>> refactor_(b, a)
    >>> torch.allclose(b @ a, w, rtol=1e-4), torch.allclose(b.T @ b, a @ a.T, rtol=1e-3, atol=1e-2)
    (True, True)
    """
    if b.shape[-1] != a.shape[-2]:
        raise ValueError(f"a: has {a.shape[-2]} rows, expected as many as b has columns, {b.shape[-1]}")
    (qb, rb), (qa, ra) = torch.linalg.qr(double(b)), torch.linalg.qr(double(a).mH)
    u, s, vh = torch.linalg.svd(rb @ ra.mH)
    full = (s[..., -1:] > torch.finfo(b.dtype).eps * s[..., :1]).unsqueeze(-1)
    root = s.sqrt().unsqueeze(-2)
    b.copy_(torch.where(full, (qb @ (u * root)).to(b.dtype), b))
    a.copy_(torch.where(full, (qa @ (vh.mH * root)).mH.to(a.dtype), a))
