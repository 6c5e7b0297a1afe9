"""Inverse p-th roots of positive semidefinite matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steepest.linalg.eigen import eigh
from steepest.linalg.shapes import require_square


def inverse_root(s: Tensor, power: float, eps: float) -> Tensor:
    """(S + eps mean(diag S) I)^-power of the Hermitian positive semidefinite s `(*b, n, n)`; the identity for S = 0.

    By eigenvectors on a CPU, where they are the faster way at every size (n = 32, a batch of 32: 3.4 against 3.1 to 6.7
    ms; n = 1024: 0.2 against 1 to 2.3 s, the more the worse the condition); by products alone elsewhere, if 1/power is
    a whole number. In float32 both are as exact as their shift allows: what lies below 1e-7 of the largest eigenvalue
    is rounding's.
    """
    require_square(s, "s")
    shift = _shift(s, eps)
    whole = abs(1 / power - round(1 / power)) < 1e-9 and eps > 0
    return by_products(s, round(1 / power), eps) if whole and not s.is_cpu else by_eigenvectors(s, power, shift)


def by_eigenvectors(s: Tensor, power: float, shift: Tensor) -> Tensor:
    """V (w + shift)^-power V^H; eigenvalues below zero are rounding's, as where a statistic has not full rank."""
    w, v = eigh(s)
    return (v * (w.clamp_min(0) + shift).pow(-power).unsqueeze(-2)) @ v.mH


def by_products(s: Tensor, p: int, eps: float) -> Tensor:
    """The same for power = 1/p by the coupled Newton iteration, X <- X T and M <- T^p M with T = ((p + 1) I - M) / p,
    which keeps X^p A = M -> I.

    Small eigenvalues of M grow by (1 + 1/p)^p a round, so that the shift bounds the number of rounds in advance, and
    nothing has to be read back from the device.

    Guo and Higham 2006, "A Schur-Newton method for the matrix pth root and its inverse", equation 3.2.
    """
    n = s.shape[-1]
    eye, shift = torch.eye(n, dtype=s.dtype, device=s.device), _shift(s, eps).unsqueeze(-1)
    a = s + shift * eye
    z = (1 + p) / (2 * a.abs().sum(-1).amax(-1)[..., None, None])
    x, m = eye * z ** (1 / p), a * z
    for _ in range(math.ceil(math.log(n / eps + 1) / (p * math.log1p(1 / p))) + 6):
        t = ((p + 1) * eye - m) / p
        x, m = x @ t, torch.linalg.matrix_power(t, p) @ m
    return x


def _shift(s: Tensor, eps: float) -> Tensor:
    """What is added to the eigenvalues, `(*b, 1)`."""
    mean = s.diagonal(dim1=-2, dim2=-1).real.mean(-1, keepdim=True)
    return torch.where(mean > 0, eps * mean, 1)
