"""Conjugate gradients: linear systems and least squares given by operators, a batch of independent ones at once.

A vector is a tensor or a tuple of tensors `(*b, ...)` with common batch dimensions b; `ndims` is the number of trailing
dimensions of each tensor that belong to one vector (one number for all, or one for each). The inner product is
Re <x, y>, so operators need to be linear over the real numbers only. Nothing is recorded for differentiation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Vector = Any
"""A tensor, or a tuple of tensors."""
Operator = Callable[[Vector], Vector]
Sizes = int | tuple[int, ...]
Parts = tuple[Tensor, ...]


def conjugate_gradient(
    operator: Operator, b: Vector, ndims: Sizes, tolerance: float = 1e-8, iterations: int = 100
) -> tuple[Vector, Tensor]:
    """Solution x of A x = b for a self-adjoint positive definite operator, and its relative residual |b - A x| / |b|.

    Every batch element has its own coefficients and rests once its residual is at most `tolerance`; all stop when none
    is left, or after `iterations` applications of A. An element in which A shows curvature that is not positive rests
    where it is, and its residual says so. b = 0 gives x = 0 and residual 0.

    The residual `(*b,)` is that of the recursion (Hestenes and Stiefel, 1952); the true one does not go below about eps
    times the condition number of A. Of a semidefinite A and b in its range, x is the solution of least norm.
    """
    single = isinstance(b, Tensor)
    unit, r = _normalized(b, ndims)
    x, p = _scaled(torch.zeros_like(unit), r, ndims), r
    rr = start = _inner(r, r, ndims)
    active = start > 0
    for _ in range(iterations):
        active = active & (rr > tolerance**2 * start)
        if not active.any():
            break
        ap = _parts(operator(_vector(p, single)))
        curvature = _inner(p, ap, ndims)
        active = active & (curvature > 0)
        step = torch.where(active, rr / curvature, 0)
        x, r = _sum(x, step, p, ndims), _sum(r, -step, ap, ndims)
        before, rr = rr, _inner(r, r, ndims)
        p = _sum(r, torch.where(active, rr / before, 0), p, ndims)
    return _vector(_scaled(unit, x, ndims), single), _relative(rr, start)


def least_squares(
    operator: Operator,
    adjoint: Operator,
    b: Vector,
    x_ndims: Sizes,
    b_ndims: Sizes,
    tolerance: float = 1e-8,
    iterations: int = 100,
) -> tuple[Vector, Tensor]:
    """The x of least norm that minimises |J x - b|, given J and its adjoint, and |J^H (b - J x)| / |J^H b| `(*b,)`.

    By CGLS (Hestenes and Stiefel, 1952; Björck, 1996, section 7.4): conjugate gradients for J^H J x = J^H b that keep
    the residual r = b - J x, and so do not square what rounding does to it. A batch element rests once that ratio is at
    most `tolerance`, or once J^H r is a rounding error, |J^H r| <= eps |J| |r|, with the largest |J p| / |p| that was
    seen for |J| (Paige and Saunders, 1982); all stop when none is left, or after `iterations`. J^H b = 0 gives x = 0.
    """
    unit, r = _normalized(b, b_ndims)
    gradient = adjoint(_vector(r, isinstance(b, Tensor)))
    single, s = isinstance(gradient, Tensor), _parts(gradient)
    x, p = _scaled(torch.zeros_like(unit), s, x_ndims), s
    ss = start = _inner(s, s, x_ndims)
    norm, eps = torch.zeros_like(ss), torch.finfo(ss.dtype).eps
    active = start > 0
    for _ in range(iterations):
        active = active & (ss > tolerance**2 * start) & (ss > eps**2 * norm * _inner(r, r, b_ndims))
        if not active.any():
            break
        jp = _parts(operator(_vector(p, single)))
        square = _inner(jp, jp, b_ndims)
        active = active & (square > 0)
        step = torch.where(active, ss / square, 0)
        norm = torch.maximum(norm, torch.where(active, square / _inner(p, p, x_ndims), 0))
        x, r = _sum(x, step, p, x_ndims), _sum(r, -step, jp, b_ndims)
        s = _parts(adjoint(_vector(r, isinstance(b, Tensor))))
        before, ss = ss, _inner(s, s, x_ndims)
        p = _sum(s, torch.where(active, ss / before, 0), p, x_ndims)
    return _vector(_scaled(unit, x, x_ndims), single), _relative(ss, start)


# Vectors. -------------------------------------------------------------------------------------------------------------


def _parts(x: Vector) -> Parts:
    return tuple(part.detach() for part in ((x,) if isinstance(x, Tensor) else x))


def _vector(x: Parts, single: bool) -> Vector:
    return x[0] if single else x


def _each(x: Parts, ndims: Sizes) -> list[tuple[Tensor, int]]:
    return list(zip(x, (ndims,) * len(x) if isinstance(ndims, int) else ndims, strict=True))


def _flat(x: Tensor, n: int) -> Tensor:
    return x.unsqueeze(-1).flatten(x.ndim - n)


def _inner(x: Parts, y: Parts, ndims: Sizes) -> Tensor:
    """Re <x, y> of each batch element, `(*b,)`."""
    terms = [_flat((u.conj() * v).real, n).sum(-1) for (u, n), v in zip(_each(x, ndims), y, strict=True)]
    return torch.stack(terms).sum(0)


def _scaled(t: Tensor, x: Parts, ndims: Sizes) -> Parts:
    """t x, with a number of t `(*b,)` for each batch element."""
    return tuple(t.reshape(t.shape + (1,) * n) * u for u, n in _each(x, ndims))


def _sum(x: Parts, t: Tensor, y: Parts, ndims: Sizes) -> Parts:
    """x + t y."""
    return tuple(u + v for u, v in zip(x, _scaled(t, y, ndims), strict=True))


def _normalized(b: Vector, ndims: Sizes) -> tuple[Tensor, Parts]:
    """The largest entry of b, one where that is zero, and b divided by it, so that no square under- or overflows."""
    largest = torch.stack([_flat(u.abs(), n).amax(-1) for u, n in _each(_parts(b), ndims)]).amax(0)
    unit = torch.where(largest > 0, largest, 1)
    return unit, _scaled(1 / unit, _parts(b), ndims)


def _relative(now: Tensor, start: Tensor) -> Tensor:
    return torch.where(start > 0, now / start, now).sqrt()
