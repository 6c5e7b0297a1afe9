"""Global minimisers of cubic models."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALVINGS = 80
"""Of an interval of shifts, in their logarithm: from a hundred orders of magnitude to less than a rounding error."""


def cubic_step(w: Tensor, g: Tensor, m: Tensor) -> Tensor:
    """The h `(*b, n)` that minimises g^T h + h^T diag(w) h / 2 + m |h|^3 / 6 over all h.

    (w + t) h = -g with t = m |h| / 2 and w + t >= 0 (Nesterov and Polyak 2006, section 5; any w): one number t, found
    by bisection in t - t0, t0 = max(0, -min w), which keeps its digits where that difference is small. In the hard
    case, g without a part along the eigenvectors of a negative min w, t = t0 may leave h too short, and such a vector
    fills it up; its sign does not matter.

    Args:
        w: eigenvalues `(*b, n)`, ascending, of any sign.
        g: the gradient in the eigenvectors, `(*b, n)`.
        m: positive, `(*b,)`.
    """
    m, info = m.unsqueeze(-1), torch.finfo(w.dtype)
    t0 = (-w[..., :1]).clamp_min(0)
    above, half = w + t0, w[..., :1].abs() / 2
    # with s = t - t0, |h| <= |g| / (min above + s), and either t0 or min above is zero: s^2 + |min w| s <= m |g| / 2
    product = m * torch.linalg.vector_norm(g, dim=-1, keepdim=True) / 2
    high = (product / (half + (half**2 + product).sqrt()).clamp_min(info.tiny)).clamp_min(info.tiny**0.5).log()
    low = high + math.log(info.tiny) / 3
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        s = middle.exp()  # never zero
        length = torch.linalg.vector_norm(g / (above + s), dim=-1, keepdim=True)
        long = length > 2 * (t0 + s) / m
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    s = high.exp()
    h = -_quotient(g, above + s)
    missing = (2 * t0 / m) ** 2 - h.square().sum(-1, keepdim=True)
    hard = (s <= info.eps * t0) & (missing > 0)
    first = torch.copysign((h[..., :1] ** 2 + missing.clamp_min(0)).sqrt(), h[..., :1])
    return torch.cat([torch.where(hard, first, h[..., :1]), h[..., 1:]], -1)


def _quotient(g: Tensor, d: Tensor) -> Tensor:
    return torch.where(g == 0, 0, g / d)
