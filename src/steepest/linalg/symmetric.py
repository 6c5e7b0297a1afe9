"""Functions of symmetric matrices, with derivatives that are exact at repeated eigenvalues.

Autograd through an eigendecomposition divides by gaps between eigenvalues: NaN at the identity, wrong digits near it.
The derivative of f(A) itself has no such gap. With A = V diag(w) V^T it is (Daleckii and Krein, 1965; Higham, Functions
of Matrices, 2008, theorem 3.11)

    Df(A)[E] = V (f[w_i, w_j] * V^T E V) V^T,    f[a, b] = (f(b) - f(a)) / (b - a),  f[a, a] = f'(a),

and each divided difference f[a, b] here is written in a form without cancellation. The second derivative uses
f[w_i, w_k, w_j] in the same way, in memory n^3. First and second derivatives work, backward and forward and under
`torch.func`; third derivatives raise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.linalg.autograd import Rule
from steepest.linalg.precision import widen
from steepest.linalg.shapes import require_square


def sym(a: Tensor) -> Tensor:
    """Symmetric part (a + a^T) / 2 of a `(*b, n, n)`: the nearest symmetric matrix."""
    require_square(a, "a")
    return 0.5 * (a + a.mT)


def skew(a: Tensor) -> Tensor:
    """Skew part (a - a^T) / 2 of a `(*b, n, n)`: the nearest skew matrix."""
    require_square(a, "a")
    return 0.5 * (a - a.mT)


def sym_exp(a: Tensor) -> Tensor:
    """Matrix exponential of the symmetric a `(*b, n, n)`."""
    return _spectral(a, EXP)


def sym_log(a: Tensor) -> Tensor:
    """Matrix logarithm of the positive definite a `(*b, n, n)`."""
    return _spectral(a, LOG)


def sym_sqrt(a: Tensor) -> Tensor:
    """Positive square root of the positive semidefinite a `(*b, n, n)`; differentiable where a is definite."""
    return _spectral(a, SQRT)


def sym_inv_sqrt(a: Tensor) -> Tensor:
    """Inverse of the positive square root of the positive definite a `(*b, n, n)`."""
    return _spectral(a, INV_SQRT)


def sym_power(a: Tensor, p: float) -> Tensor:
    """a^p of the symmetric a `(*b, n, n)`; a positive definite, semidefinite for p > 0, any sign for an integral p."""
    return _spectral(a, integer_power(int(p)) if p == int(p) else real_power(p))


def sym_angle_over_sine(a: Tensor) -> Tensor:
    """arccos(a) / sin(arccos(a)) of the symmetric a `(*b, n, n)` with eigenvalues in [0, 1]: smooth at one, where an
    angle is zero; above one by rounding counts as one."""
    return _spectral(a, ANGLE_OVER_SINE)


# The functions of one eigenvalue. -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scalar:
    """A function f of one variable with what its matrix derivatives need; f' is `slope(x, x)`."""

    value: Callable[[Tensor], Tensor]
    """f(x)."""
    slope: Callable[[Tensor, Tensor], Tensor]
    """f[a, b] for a <= b, without cancellation."""
    curvature: Callable[[Tensor], Tensor]
    """f''(x)."""
    scale: Callable[[Tensor], Tensor] = torch.abs
    """Distance over which f varies near x."""
    positive: bool = True
    """Whether f lives on x >= 0; then an eigenvalue that is negative by rounding alone counts as zero."""


def _exp_slope(a: Tensor, b: Tensor) -> Tensor:
    d = b - a
    return b.exp() * torch.where(d == 0, 1, -torch.expm1(-d) / d)


def _log_slope(a: Tensor, b: Tensor) -> Tensor:
    x = (b - a) / a
    return torch.where(x == 0, 1, torch.log1p(x) / x) / a


EXP = Scalar(torch.exp, _exp_slope, torch.exp, torch.ones_like, positive=False)
LOG = Scalar(torch.log, _log_slope, lambda x: -1 / x.square())
SQRT = Scalar(torch.sqrt, lambda a, b: 1 / (a.sqrt() + b.sqrt()), lambda x: -0.25 * x**-1.5)
INV_SQRT = Scalar(torch.rsqrt, lambda a, b: -1 / (a * b.sqrt() + b * a.sqrt()), lambda x: 0.75 * x**-2.5)


ANGLE_TERMS = 60
"""With u = 1 - cos t, t / sin t = sum b_k u^k, b_0 = 1, b_{k+1} / b_k = (k + 1) / (2k + 3) < 1/2: enough for u <= 1."""


def _angle_series(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The series at a, and its divided difference over a and b in 1 - cos t: Horner's rule, all terms positive."""
    coefficients = [1.0]
    for k in range(ANGLE_TERMS):
        coefficients.append(coefficients[-1] * (k + 1) / (2 * k + 3))
    u, w = (1 - a).clamp_min(0), (1 - b).clamp_min(0)
    value, other = (torch.full_like(u + w, coefficients[-1]) for _ in range(2))
    slope = torch.zeros_like(value)
    for c in reversed(coefficients[:-1]):
        slope = other + u * slope
        value, other = c + u * value, c + w * other
    return value, slope


def _angle_curvature(x: Tensor) -> Tensor:
    """f'' from the differential equation (1 - x^2) f' = x f - 1, and near one from the series, 4 / 15 + 36 / 105 u."""
    value, slope = _angle_series(x, x)
    rest = (1 - x.square()).clamp_min(1e-30)
    return torch.where(x > 1 - 1e-5, 4 / 15 + 36 / 105 * (1 - x), (value - 3 * x * slope) / rest)


ANGLE_OVER_SINE = Scalar(
    lambda x: _angle_series(x, x)[0], lambda a, b: -_angle_series(a, b)[1], _angle_curvature, torch.ones_like
)


def real_power(p: float) -> Scalar:
    """x^p on x > 0; with u = log(a / b), f[a, b] = b^(p-1) (e^(p u) - 1) / (e^u - 1)."""

    def slope(a: Tensor, b: Tensor) -> Tensor:
        u = torch.log(a / b)
        return b ** (p - 1) * torch.where(a == b, p, torch.expm1(p * u) / torch.expm1(u))

    return Scalar(lambda x: x**p, slope, lambda x: p * (p - 1) * x ** (p - 2))


def integer_power(p: int) -> Scalar:
    """x^p for x of any sign; f[a, b] is a sum of |p| products of powers."""

    def slope(a: Tensor, b: Tensor) -> Tensor:
        terms = [a**k * b ** (p - 1 - k) for k in range(p)] or [-(a ** (p + k)) * b ** (-1 - k) for k in range(-p)]
        return sum(terms, torch.zeros_like(a + b))

    def curvature(x: Tensor) -> Tensor:
        return p * (p - 1) * x ** (p - 2) if p not in (0, 1) else torch.zeros_like(x)

    return Scalar(lambda x: x**p, slope, curvature, positive=False)


def _slopes(w: Tensor, f: Scalar) -> Tensor:
    """f[w_i, w_j], `(*b, n, n)`, of eigenvalues w `(*b, n)`."""
    a, b = w[..., :, None], w[..., None, :]
    return f.slope(torch.minimum(a, b), torch.maximum(a, b))


def _second_slopes(w: Tensor, f: Scalar) -> Tensor:
    """f[w_i, w_k, w_j], `(*b, n, n, n)`.

    The quotient is taken over the largest of the three gaps; where even that is small, f[a, b, c] is f''(mean) / 2 up
    to the square of the gap. The bound eps^(1/3) makes the two errors equal, eps^(2/3).
    """
    triples = torch.broadcast_tensors(w[..., :, None, None], w[..., None, :, None], w[..., None, None, :])
    low, mid, high = torch.stack(triples, -1).sort(-1).values.unbind(-1)
    mean, gap = (low + mid + high) / 3, high - low
    near = gap <= torch.finfo(w.dtype).eps ** (1 / 3) * f.scale(mean)
    quotient = (f.slope(mid, high) - f.slope(low, mid)) / torch.where(near, 1, gap)
    return torch.where(near, 0.5 * f.curvature(mean), quotient)


# The matrix function and its two derivatives. -------------------------------------------------------------------------


def _spectral(a: Tensor, f: Scalar) -> Tensor:
    s = sym(widen(a))
    w, v = torch.linalg.eigh(s.detach())
    if f.positive:
        rounding = w.shape[-1] * torch.finfo(w.dtype).eps * w.abs().amax(-1, keepdim=True)
        w = torch.where(w.abs() <= rounding, w.clamp_min(0), w)
    return _Value.call(s, w, v, f).to(a.dtype)


def _congruence(v: Tensor, core: Tensor) -> Tensor:
    return v @ core @ v.mT


class _Value(Rule):
    """f(A), given the eigenvalues w and eigenvectors v of A; these carry no derivative of their own."""

    @staticmethod
    def forward(a: Tensor, w: Tensor, v: Tensor, f: Scalar) -> Tensor:
        return (v * f.value(w).unsqueeze(-2)) @ v.mT

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Value.tangent(ctx, g), None, None, None

    @staticmethod
    def tangent(ctx: Any, da: Tensor, *_: None) -> Tensor:
        a, w, v = ctx.saved_tensors
        return _First.call(a, da, w, v, *ctx.rest)


class _First(Rule):
    """Df(A)[E]: linear and self-adjoint in E."""

    @staticmethod
    def forward(a: Tensor, e: Tensor, w: Tensor, v: Tensor, f: Scalar) -> Tensor:
        return _congruence(v, _slopes(w, f) * _congruence(v.mT, sym(e)))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        a, e, w, v = ctx.saved_tensors
        # <D2f(A)[H, E], G> is symmetric in E, G and H.
        return _Second.call(e, g, w, v, *ctx.rest), _First.call(a, g, w, v, *ctx.rest), None, None, None

    @staticmethod
    def tangent(ctx: Any, da: Tensor | None, de: Tensor | None, *_: None) -> Any:
        a, e, w, v = ctx.saved_tensors
        curved = 0 if da is None else _Second.call(e, da, w, v, *ctx.rest)
        linear = 0 if de is None else _First.call(a, de, w, v, *ctx.rest)
        return curved + linear


class _Second(Rule):
    """D2f(A)[E, H]."""

    @staticmethod
    def forward(e: Tensor, h: Tensor, w: Tensor, v: Tensor, f: Scalar) -> Tensor:
        e, h = _congruence(v.mT, sym(e)), _congruence(v.mT, sym(h))
        half = torch.einsum("...ikj,...ik,...kj->...ij", _second_slopes(w, f), e, h)
        return _congruence(v, half + half.mT)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError("third derivatives of functions of symmetric matrices are not implemented")

    tangent = backward
