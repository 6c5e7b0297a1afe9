"""Exponentials of matrices, and of those of low rank."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from steepest.linalg.autograd import plain
from steepest.linalg.products import add_product


def expm(a: Tensor) -> Tensor:
    """Matrix exponential of a `(*b, n, n)`, as expm(a + I) / e.

    For a single matrix that is small, of norm below 0.05 in float64 and 0.6 in float32, torch's own takes too few terms
    (its issue 196592: wrong by up to 2e-10 and 5e-5); a + I is never small. Where nothing is to be derived, by products
    of fewer calls.
    """
    if plain(a) and a.is_cpu:
        return taylor_exp(a)
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return torch.linalg.matrix_exp(a + eye) / math.e


def taylor_exp(a: Tensor) -> Tensor:
    """Matrix exponential of a `(*b, n, n)` by products alone: Taylor polynomials of degree 8 in three of them, 12 in
    four or 18 in five, of a / 2^s, squared s times (Bader, Blanes and Casas 2019, Computing the matrix exponential with
    an optimized Taylor polynomial approximation). s is chosen for the largest of the batch: nothing can be derived from
    the result."""
    a2 = a @ a
    # the root of |A^2| is nearer to the spectral norm than |A|, but of a matrix far from normal may be any less
    size = max(largest_norm(a2) ** 0.5, largest_norm(a) / 4)
    near, middle, far = REACH[a.real.dtype]
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a)
    if size <= near:
        return _degree_8(identity, a, a2)
    if size <= middle:
        return _degree_12(identity, a, a2)
    squarings = max(0, math.ceil(math.log2(size / far)))
    if squarings:
        a, a2 = a * 2.0**-squarings, a2 * 4.0**-squarings
    value = _degree_18(identity, a, a2)
    for _ in range(squarings):
        value = value @ value
    return value


def _degree_8(identity: Tensor, a: Tensor, a2: Tensor) -> Tensor:
    x1, x2, x3, x4, x5, x6, x7, y2 = DEGREE_8
    a4 = a2 @ (x1 * a).add_(a2, alpha=x2)
    last = (x5 * a).add_(a2, alpha=x6).add_(a4, alpha=x7).add_(identity, alpha=x4)
    return add_product(torch.add(identity + a, a2, alpha=y2), torch.add(a4, a2, alpha=x3), last)


def _degree_12(identity: Tensor, a: Tensor, a2: Tensor) -> Tensor:
    b1, b2, b3, b4 = _polynomials(12, [identity, a, a2, a2 @ a])
    a6 = add_product(b3, b4, b4)
    return add_product(b1, b2 + a6, a6)


def _degree_18(identity: Tensor, a: Tensor, a2: Tensor) -> Tensor:
    a3 = a2 @ a
    b1, b2, b3, b4, b5 = _polynomials(18, [identity, a, a2, a3, a3 @ a3])
    a9 = add_product(b4, b1, b5)
    return add_product(b2, b3 + a9, a9)


def _polynomials(degree: int, powers: list[Tensor]) -> tuple[Tensor, ...]:
    stacked = torch.stack(powers)
    return (_coefficients(degree, stacked.dtype, stacked.device) @ stacked.flatten(1)).view_as(stacked).unbind()


def largest_norm(a: Tensor) -> float:
    """The largest Frobenius norm of the batch, of those that are finite; zero where none is."""
    size = torch.linalg.vector_norm(a, dim=(-2, -1))
    largest = (size if a.ndim == 2 else size.nan_to_num(0.0, 0.0, 0.0).max()).item()
    return largest if math.isfinite(largest) else 0.0


@cache
def _coefficients(degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor({12: DEGREE_12, 18: DEGREE_18}[degree], dtype=dtype, device=device)


REACH = {torch.float64: (0.0499, 0.299, 1.09), torch.float32: (0.58, 1.46, 3.01)}
"""Norms up to which the polynomials of degree 8, 12 and 18 are the exponential to rounding."""
_ROOT = math.sqrt(177)
DEGREE_8 = (
    (1 + _ROOT) / 132,
    (1 + _ROOT) / 528,
    2 / 3,
    (29 * _ROOT - 271) / 210,
    11 * (_ROOT - 1) / 840,
    11 * (_ROOT - 9) / 3360,
    (89 - _ROOT) / 2240,
    (857 - 58 * _ROOT) / 630,
)
"""x1 to x7 and y2: A4 = A2 (x1 A + x2 A2), and I + A + y2 A2 + (x3 A2 + A4) (x4 I + x5 A + x6 A2 + x7 A4)."""
DEGREE_12 = [
    [9.0198e-16, 0.46932117595418237389, -0.20099424927047284052, -0.04623946134063071740],
    [5.31597895759871264183, 1.19926790417132231573, 0.01179296240992997031, 0.01108844528519167989],
    [0.18188869982170434744, 0.05502798439925399070, 0.09351590770535414968, 0.00610700528898058230],
    [-2.0861320e-13, -0.13181061013830184015, -0.02027855540589259079, -0.00675951846863086359],
]
"""Coefficients of I, A, A^2 and A^3 in four polynomials, of which it is made."""
DEGREE_18 = [
    [0, -0.100365581030144618, -0.00802924648241156932, -0.000892138498045729985, 0],
    [0, 0.397849749499645078, 1.36783778460411720, 0.498289622525382669, -0.000637898194594723280],
    [-10.9676396052962062, 1.68015813878906206, 0.0571779846478865511, -0.00698210122488052056, 3.34975017086070471e-5],
    [
        -0.0904316832390810593,
        -0.0676404519071381882,
        0.0675961301770459655,
        0.0295552570429315521,
        -1.39180257516060693e-5,
    ],
    [0, 0, -0.0923364619367118555, -0.0169364939002081723, -1.40086798182036094e-5],
]
"""Coefficients of I, A, A^2, A^3 and A^6 in five polynomials, of which it is made."""


def low_rank_expm1(p: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """(expm(P Q^H) - I) X for P, Q `(*b, n, k)` and X `(*b, n, m)`, in size k + m instead of n.

    It is P phi(Q^H P) Q^H X with phi(M) = (expm(M) - I) / M, and phi(M) R is the upper right block of
    expm([[M, R], [0, 0]]) (Higham 2008, Functions of Matrices, section 10.7.4): no factorisation, smooth everywhere.
    """
    k = p.shape[-1]
    top = torch.cat([q.mH @ p, q.mH @ x], -1)
    bottom = torch.zeros_like(top[..., :1, :]).expand(*top.shape[:-2], x.shape[-1], top.shape[-1])
    return p @ expm(torch.cat([top, bottom], -2))[..., :k, k:]
