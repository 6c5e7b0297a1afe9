"""Orthonormal bases by QR."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.linalg.dispatch import inverse_divides
from steepest.linalg.precision import widen
from steepest.linalg.products import divide
from steepest.linalg.shapes import require_matrix, require_square


def qr(y: Tensor) -> tuple[Tensor, Tensor]:
    """Q `(*b, m, k)` and R `(*b, k, n)` with y = Q R, k = min(m, n), and a diagonal of R that is real and not negative.

    By Householder reflections, for any y `(*b, m, n)`, real or complex; with that diagonal the factors are unique where
    the first k columns of y are independent, and there they can be differentiated.
    """
    require_matrix(y, "y")
    q, r = torch.linalg.qr(widen(y))
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    # The derivative of torch keeps the phases of the diagonal as they are.
    phases = torch.where(diagonal == 0, 1, diagonal.detach().sgn())
    return (q * phases.unsqueeze(-2)).to(y.dtype), (r * phases.conj().unsqueeze(-1)).to(y.dtype)


def cholesky_qr(y: Tensor) -> Tensor:
    """The Q of `qr(y)` by one pass of Cholesky-QR, Q = y L^-H with L L^H = y^H y, for well-conditioned y `(*b, n, p)`.

    Meant for y = x + xi with x orthonormal and xi tangent: then y^H y = I + xi^H xi, and one pass is as orthonormal as
    Householder at about half its time (Fukaya, Nakatsukasa, Yanagisawa and Yamamoto, 2014, analyse the general case,
    where the error grows with the square of the condition number). It is not for an arbitrary y: nothing is checked,
    and a y without full rank gives NaN or worse.
    """
    require_matrix(y, "y")
    x = widen(y)
    lower = torch.linalg.cholesky_ex(x.mH @ x).L
    q = x @ triangular_inverse(lower).mH if inverse_divides(x) else divide(x, lower)
    return q.to(y.dtype)


def triangular_inverse(lower: Tensor) -> Tensor:
    """Inverse of the lower-triangular `lower` `(*b, r, r)`; what lies above its diagonal is not read."""
    require_square(lower, "lower")
    x = widen(lower)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve_triangular(x, identity.expand_as(x), upper=False).to(lower.dtype)
