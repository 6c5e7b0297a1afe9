"""Functions of one eigenvalue, with what the derivatives of the matrix function need of them: divided differences.

`f[x_0] = f(x_0)` and `f[x_0, ..., x_k] = (f[x_1, ..., x_k] - f[x_0, ..., x_{k-1}]) / (x_k - x_0)`, at equal points the
limit, `f^(k)(x) / k!`. The first difference of every function is written in a form without cancellation; the later
ones follow by Newton's table, and by Taylor's formula where the points lie too close for it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steepest.linalg.autograd import plain


@dataclass(frozen=True)
class Scalar:
    """A function f of one variable with what its matrix derivatives need; f' is `slope(x, x)`."""

    value: Callable[[Tensor], Tensor]
    """f(x)."""
    slope: Callable[[Tensor, Tensor], Tensor]
    """f[a, b] for a <= b, without cancellation."""
    taylor: Callable[[Tensor, int, int], Tensor]
    """f^(k + m)(x) / (k + m)! * scale(x)^m, of x, k and m. In one piece, for the two factors alone may overflow."""
    scale: Callable[[Tensor], Tensor] = torch.abs
    """Distance over which f varies near x."""
    positive: bool = True
    """Whether f lives on x >= 0; then an eigenvalue that is negative by rounding alone counts as `least`."""
    least: float = 0.0
    """In units of the rounding error, n eps times the largest eigenvalue."""


@dataclass(frozen=True)
class Remembered(Scalar):
    """A function that keeps its divided differences for the eigenvalues of one matrix: each further product with second
    derivatives there finds them."""

    known: dict[int, Tensor] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, f: Scalar) -> Scalar:
        """f, with a memory of its own."""
        return cls(f.value, f.slope, f.taylor, f.scale, f.positive, f.least)


# Divided differences. -------------------------------------------------------------------------------------------------


def divided_differences(w: Tensor, order: int, f: Scalar) -> Tensor:
    """f[w_i, w_j, ...] over all choices of order + 1 of the values w `(*b, n)`: `(*b, n, ..., n)`."""
    points, places = _points(w, order)
    x = _sorted(points)
    table = [f.slope(x[i], x[i + 1]) for i in range(order)]
    for k in range(2, order + 1):
        table = [_next_difference(x[i : i + k + 1], table[i], table[i + 1], f) for i in range(order + 1 - k)]
    return table[0] if places is None else table[0][..., places]


LARGEST = 1 << 20
"""Choices of values up to which the places of each are kept."""


def _points(w: Tensor, order: int) -> tuple[list[Tensor], Tensor | None]:
    """The values of each choice. Differences do not depend on the order of their points: one of (order + 1)! is enough,
    and then come with it the places, `(n, ..., n)`, that each fills."""
    n = w.shape[-1]
    if order == 1 or n ** (order + 1) > LARGEST or not plain(w):
        axes = range(order + 1)
        return [w.reshape(*w.shape[:-1], *(-1 if i == j else 1 for j in axes)) for i in axes], None
    choices, places = (torch.from_numpy(a).to(w.device) for a in _choices(n, order + 1))
    return [w[..., choice] for choice in choices], places


@functools.lru_cache(maxsize=8)
def _choices(n: int, k: int) -> tuple[Any, Any]:
    """k ascending numbers below n in all ways, `(k, m)`, and for any k numbers, in any order, which of these they are:
    as arrays of NumPy, which no mode of torch takes for its own."""
    import numpy as np

    numbers = np.sort(np.indices((n,) * k).reshape(k, -1), axis=0)
    codes = np.ravel_multi_index(tuple(numbers), (n,) * k)
    found, places = np.unique(codes, return_inverse=True)
    return np.stack(np.unravel_index(found, (n,) * k)), places.reshape((n,) * k)


def _sorted(x: list[Tensor]) -> list[Tensor]:
    """The tensors sorted against each other, entry by entry, ascending; for a few, faster than a stack's `sort`."""
    for end in range(len(x) - 1, 0, -1):
        for i in range(end):
            x[i], x[i + 1] = torch.minimum(x[i], x[i + 1]), torch.maximum(x[i], x[i + 1])
    return x


DEGREE = 4
"""Of the Taylor polynomial that stands for a divided difference of close points."""


def _next_difference(x: list[Tensor], low: Tensor, high: Tensor, f: Scalar) -> Tensor:
    """f[x_0, ..., x_k] of ascending points and k >= 2, from low = f[x_0, ..., x_{k-1}] and high = f[x_1, ..., x_k].

    With h the gap x_k - x_0 in units of f's scale, Taylor's formula to degree 4 errs by h^5, and the quotient by e / h
    with e the error of `low` and `high`: the rounding eps for k = 2. The bound on h that makes the two equal is
    eps^(1/6), error eps^(5/6), for k = 2, and for k = 3, where e = eps^(5/6), eps^(5/36) and eps^(25/36). So float64
    has about 13 and 11 digits, float32 about 6 and 5.
    """
    k = len(x) - 1
    error = torch.finfo(low.dtype).eps ** (((DEGREE + 1) / (DEGREE + 2)) ** (k - 1))
    mean = sum(x[1:], x[0]) / (k + 1)
    gap, scale = x[-1] - x[0], f.scale(mean)
    near = gap <= error ** (1 / (DEGREE + 1)) * scale
    return torch.where(near, _taylor(x, mean, f), (high - low) / torch.where(near, 1, gap))


def _taylor(x: list[Tensor], mean: Tensor, f: Scalar) -> Tensor:
    """f[x_0, ..., x_k] = sum_m f^(k + m)(mean) / (k + m)! h_m(x - mean) to m = 4.

    h_m is the complete homogeneous polynomial; of numbers whose sum is zero h_1 = 0, h_2 = p_2 / 2, h_3 = p_3 / 3 and
    h_4 = p_4 / 4 + p_2^2 / 8, with the power sums p.
    """
    k, scale = len(x) - 1, f.scale(mean)
    unit = torch.where(scale == 0, 1, scale)  # where it is zero, so are all points that are close
    p2 = p3 = p4 = torch.zeros_like(mean)
    for point in x:
        d = (point - mean) / unit
        square = d * d
        p2, p3, p4 = p2 + square, p3 + square * d, p4 + square * square
    c0, c2, c3, c4 = (f.taylor(mean, k, m) for m in (0, 2, 3, 4))
    return c0 + c2 * p2 / 2 + c3 * p3 / 3 + c4 * (p4 / 4 + p2.square() / 8)


# Exponential, logarithm, powers. --------------------------------------------------------------------------------------


def _exp_slope(a: Tensor, b: Tensor) -> Tensor:
    d = b - a
    return b.exp() * torch.where(d == 0, 1, -torch.expm1(-d) / d)


def _log_slope(a: Tensor, b: Tensor) -> Tensor:
    x = (b - a) / a
    return torch.where(x == 0, 1, torch.log1p(x) / x) / a


def _exp_taylor(x: Tensor, k: int, m: int) -> Tensor:
    return x.exp() / math.factorial(k + m)


def _log_taylor(x: Tensor, k: int, m: int) -> Tensor:
    return (-1) ** (k + m - 1) / (k + m) * x**-k


def _power_taylor(p: float) -> Callable[[Tensor, int, int], Tensor]:
    def taylor(x: Tensor, k: int, m: int) -> Tensor:
        binomial = math.prod((p - i) / (i + 1) for i in range(k + m))
        return binomial * x.sign() ** m * x ** (p - k) if binomial else torch.zeros_like(x)  # scale(x)^m = |x|^m

    return taylor


EXP = Scalar(torch.exp, _exp_slope, _exp_taylor, scale=torch.ones_like, positive=False)
LOG = Scalar(torch.log, _log_slope, _log_taylor, least=1.0)
SQRT = Scalar(torch.sqrt, lambda a, b: 1 / (a.sqrt() + b.sqrt()), _power_taylor(0.5))
INV_SQRT = Scalar(torch.rsqrt, lambda a, b: -1 / (a * b.sqrt() + b * a.sqrt()), _power_taylor(-0.5))


def power(p: float) -> Scalar:
    """x^p; on x > 0, for x of any sign where p is integral."""
    return _integer_power(int(p)) if p == int(p) else _real_power(p)


def _real_power(p: float) -> Scalar:
    """With u = log(a / b), f[a, b] = b^(p-1) (e^(p u) - 1) / (e^u - 1)."""

    def slope(a: Tensor, b: Tensor) -> Tensor:
        u = torch.log(a / b)
        return b ** (p - 1) * torch.where(a == b, p, torch.expm1(p * u) / torch.expm1(u))

    return Scalar(lambda x: x**p, slope, _power_taylor(p))


def _integer_power(p: int) -> Scalar:
    """f[a, b] is a sum of |p| products of powers."""

    def slope(a: Tensor, b: Tensor) -> Tensor:
        terms = [a**k * b ** (p - 1 - k) for k in range(p)] or [-(a ** (p + k)) * b ** (-1 - k) for k in range(-p)]
        return sum(terms, torch.zeros_like(a + b))

    return Scalar(lambda x: x**p, slope, _power_taylor(p), positive=False)


# The angle over its sine, as a function of the cosine. ----------------------------------------------------------------


ANGLE_TERMS = 60
"""With u = 1 - cos t, t / sin t = sum b_i u^i, b_0 = 1, b_{i+1} / b_i = (i + 1) / (2i + 3) < 1/2: enough for u <= 1."""


def _angle_coefficients() -> list[float]:
    b = [1.0]
    for i in range(ANGLE_TERMS):
        b.append(b[-1] * (i + 1) / (2 * i + 3))
    return b


def _angle_slope(a: Tensor, b: Tensor) -> Tensor:
    """Horner's rule for the series at a, at b and for its divided difference in u = 1 - x: all terms are positive."""
    coefficients = _angle_coefficients()
    u, w = (1 - a).clamp_min(0), (1 - b).clamp_min(0)
    other = torch.full_like(u + w, coefficients[-1])
    slope = torch.zeros_like(other)
    for c in reversed(coefficients[:-1]):
        slope = other + u * slope
        other = c + w * other
    return -slope


def _angle_taylor(x: Tensor, k: int, m: int) -> Tensor:
    """With j = k + m, (-1)^j sum_i binomial(i, j) b_i u^(i - j): Horner's rule, all terms are positive."""
    j, u = k + m, (1 - x).clamp_min(0)
    terms = [math.comb(i, j) * b for i, b in enumerate(_angle_coefficients())][j:]
    value = torch.full_like(u, terms[-1])
    for term in reversed(terms[:-1]):
        value = term + u * value
    return (-1) ** j * value


ANGLE_OVER_SINE = Scalar(lambda x: _angle_taylor(x, 0, 0), _angle_slope, _angle_taylor, scale=torch.ones_like)


def angle_over_sine(c: Tensor) -> Tensor:
    """arccos(c) / sin(arccos(c)) for c in [0, 1], above one by rounding counted as one; without derivatives."""
    c = c.clamp_max(1)
    return torch.where(c == 1, 1, c.acos() / ((1 - c) * (1 + c)).sqrt())
