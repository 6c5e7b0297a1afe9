"""Frozen bases that are the same wherever they are computed: fixed signs, and a probe that finds them again.

An adapter whose trained numbers are coordinates in a frozen basis means something else in another basis. Singular
vectors are determined up to their signs, and up to a rotation where singular values meet, and each LAPACK chooses in
its own way; so what is saved without its basis has to say which one it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.linalg.precision import double

ROUNDING = 1e-6
"""Singular values below this, beside the largest, are taken for zero: eigenvectors of W^T W in float64 are off by its
rounding over their square."""
FULL_PROBE = 256
"""Up to this many columns a probe pins down any rotation of the basis; beyond, their signs alone."""
SAME, FOUND, NEARER = 1e-3, 2e-2, 0.3
"""Largest relative distance of a probe at which a basis counts as the same, and at which it counts as found again: a
probe that was saved in bfloat16 is off by 2e-3. How much nearer than other signs a rotation has to come."""


def fix_signs(v: Tensor) -> Tensor:
    """The columns of v `(n, r)` with signs such that the entry of largest modulus is positive."""
    largest = v.gather(-2, v.abs().argmax(-2, keepdim=True))
    return v * torch.where(largest < 0, -1, 1).to(v.dtype)


def principal(weight: Tensor, rank: int) -> Tensor:
    """The leading right singular vectors V `(in, rank)` of W `(out, in)` in float64, with fixed signs.

    By the eigenvectors of the smaller of W W^T and W^T W: about a third of the time of an SVD, and as accurate for
    leading vectors, as the square of the condition number matters to the last ones alone.
    """
    w = double(weight)
    if rank > min(w.shape):
        raise ValueError(f"rank: got {rank}, but a weight {tuple(w.shape)} has {min(w.shape)} singular values only")
    if w.shape[0] >= w.shape[1]:
        return fix_signs(torch.linalg.eigh(w.mT @ w)[1][:, -rank:].flip(-1))
    left = torch.linalg.eigh(w @ w.mT)[1][:, -rank:].flip(-1)
    return fix_signs(torch.linalg.qr(w.mT @ left)[0])  # columns of length s_i, orthogonal to each other up to rounding


def check_values(name: str, value: int, s: Tensor, instead: str = "") -> None:
    """Raise a ValueError where some of a weight's singular values `s`, taken up to number `value`, are zero up to
    rounding: each computer would find other vectors for them, so that nobody could load what was trained in these."""
    kept = int((s > ROUNDING * s.max()).sum())
    if kept < len(s):
        raise ValueError(
            f"{name}: got {value}, but the weight of a layer has only {value - len(s) + kept} singular values that are "
            f"not zero; take as many, or fewer, or leave the layer out{instead}"
        )


def probe(v: Tensor) -> Tensor:
    """What v `(n, r)` answers to fixed signs: F^T v `(k, r)` with F of +-1 from an integer formula, which no library
    and no device can compute in two ways; k = r + 8, so that v is found again from its span and this, and a span that
    is not the same is found out."""
    n, r = v.shape
    k = r + 8 if r <= FULL_PROBE else 8
    return _signs(n, k, v).mT @ v


def matches(v: Tensor, stored: Tensor, tolerance: float = SAME) -> bool:
    """Whether v is the basis that the probe is of."""
    return bool(_distance(v, stored) <= tolerance)


def recover(v: Tensor, stored: Tensor) -> Tensor | None:
    """The basis with the span of v `(n, r)` that the probe is of; None where there is none.

    Other signs alone are tried first: a rotation fits the rounding of a stored probe as well, and is believed only
    where it comes much nearer.
    """
    v, stored = double(v), double(stored.to(v.device))
    here = probe(v)
    if here.shape != stored.shape or not stored.isfinite().all():
        return None
    found = v * torch.where((here * stored).sum(0) < 0, -1, 1)
    if here.shape[0] >= here.shape[1]:
        u, _, vh = torch.linalg.svd(torch.linalg.lstsq(here, stored).solution)
        turned = v @ (u @ vh)  # nothing but a rotation can turn one basis into another
        if _distance(turned, stored) < NEARER * _distance(found, stored):
            found = turned
    return found if matches(found, stored, FOUND) else None


def _distance(v: Tensor, stored: Tensor) -> Tensor:
    """How far the probe of v is from the stored one, relative to that."""
    return torch.linalg.vector_norm(probe(double(v)) - stored) / torch.linalg.vector_norm(stored)


def _signs(n: int, k: int, like: Tensor) -> Tensor:
    """A matrix of +-1 `(n, k)`: a bit from the middle of the products of a multiplicative congruential generator."""
    cells = torch.arange(1, n * k + 1, dtype=torch.int64, device=like.device)
    mixed = cells * 48271 % 2147483647
    mixed = (mixed ^ (mixed >> 15)) * 69621 % 2147483647
    return ((mixed >> 12 & 1) * 2 - 1).to(like.dtype).reshape(n, k)
