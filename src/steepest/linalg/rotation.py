"""Logarithm and angles of orthogonal and unitary matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.linalg.polar import polar
from steepest.linalg.precision import widen
from steepest.linalg.shapes import require_square
from steepest.linalg.symmetric import skew, sym, sym_angle_over_sine


def unitary_log(q: Tensor) -> Tensor:
    """Principal logarithm of the orthogonal (unitary) q `(*b, n, n)`: the skew K with expm(K) = q and angles below pi.

    Real for a real q. The polar factor of I + q is the square root R of q, with angles below pi / 2; with cosine
    C = sym(R) and sine S = skew(R), K = 2 (arccos(C) / sin(arccos(C))) S. Both factors are smooth at the identity and
    at repeated angles, and so is K: derivatives to the third work there, backward, forward and under `torch.func`.

    With d the distance of the largest angle from pi, R has an error eps / d; one Newton step for R R = q squares it, so
    that expm(K) = q to rounding down to d = sqrt(eps). K itself keeps an error eps / d only where several angles are
    that near to pi, which is the condition of the logarithm. NaN for a batch element that has lost half of the digits
    even so (seen at R R): one with an eigenvalue -1, as every real q with determinant -1 has, or with d near eps. Drift
    from unitarity, |q^H q - I|, acts like eps; repair it by `polar`.
    """
    require_square(q, "q")
    x = widen(q)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    r = polar(identity + x)
    r = r + 0.5 * r @ skew(r.mH @ x @ r.mH)
    k = 2 * skew(sym_angle_over_sine(sym(r)) @ skew(r))
    rounding = _norm(x.mH @ x - identity) + x.shape[-1] * torch.finfo(x.dtype).eps
    return torch.where(_norm(r @ r - x).square() <= rounding, k, torch.nan).to(q.dtype)


def unitary_angles(q: Tensor) -> Tensor:
    """The n rotation angles in [0, pi], `(*b, n)` and ascending, of the orthogonal or unitary q `(*b, n, n)`.

    They are the absolute values of the arguments of the eigenvalues exp(i t). The singular values of I - q and I + q
    are 2 sin(t / 2) and 2 cos(t / 2), so that small angles and angles near pi are equally accurate, to a few eps.
    """
    require_square(q, "q")
    x = widen(q)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    sine, cosine = torch.linalg.svdvals(identity - x).flip(-1), torch.linalg.svdvals(identity + x)
    return (2 * torch.atan2(sine, cosine)).to(q.real.dtype)


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(a.detach(), keepdim=True)
