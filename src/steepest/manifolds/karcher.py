"""The Karcher mean: the point with the least weighted sum of squared distances."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steepest.manifolds.geodesic import ConvergenceWarning
from steepest.manifolds.implicit import ravel, unravel, with_derivatives
from steepest.manifolds.tensors import as_tuple, bcast, each

if TYPE_CHECKING:
    from steepest.manifolds.base import Manifold

ITERATIONS = 200


def mean(m: Manifold, points: Any, weights: Tensor | None = None) -> Any:
    """The mean x of `points` `(k, *b, ...)`, at which sum_i w_i log(x, y_i) = 0 (Karcher 1977).

    By x <- exp(x, t sum_i w_i log(x, y_i)) from the first point, with t the step of Barzilai and Borwein, one at first
    (Newton's step on a flat manifold), times a factor that is halved for an element whenever its gradient grows
    (Afsari, Tron and Vidal 2013, 1201.0925, for constant t; Iannazzo and Porcelli 2018 for theirs). The derivatives are
    those of the equation (`implicit`), not of the iteration.
    """
    first = as_tuple(points)[0]
    batch = first.shape[1 : first.ndim - m.point_ndims[0]]
    w = normalized_weights(weights, first, batch)

    def descent(x: Any) -> Any:
        """-gradient at x: the weighted mean of the logarithms."""
        k = first.shape[0]
        v = m.log(each(lambda t: t.expand(k, *t.shape), x), points)
        return each(lambda t: (bcast(w, t.ndim - w.ndim) * t).sum(0), v)

    start = each(lambda t: t[0], points)
    with torch.no_grad():
        x = _descend(m, start, descent, batch)
    inputs = (*as_tuple(points), w)
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        x = _attached(m, x, descent)
    return x


def normalized_weights(weights: Tensor | None, first: Tensor, batch: tuple[int, ...]) -> Tensor:
    """The weights of `mean` as `(k, *b)` of sum one, real, for points whose first tensor is `first`."""
    real = first.real.dtype if first.is_complex() else first.dtype
    if weights is None:
        return torch.full((first.shape[0], *batch), 1 / first.shape[0], dtype=real, device=first.device)
    if weights.shape not in ((first.shape[0],), (first.shape[0], *batch)):
        raise ValueError(
            f"weights: got shape {tuple(weights.shape)}, expected one for each of the {first.shape[0]} points, "
            f"{(first.shape[0],)}, or for each point of each batch element, {(first.shape[0], *batch)}"
        )
    w = bcast(weights, len(batch) + 1 - weights.ndim).expand(first.shape[0], *batch).to(real)
    return w / w.sum(0)


def _descend(m: Manifold, x: Any, descent: Any, batch: tuple[int, ...]) -> Any:
    """Steps until every element's gradient is zero to rounding; NaN, with a warning, for those where it is not."""
    eps = torch.finfo(as_tuple(x)[0].dtype).eps
    rate = torch.ones(batch, dtype=torch.float64, device=as_tuple(x)[0].device)
    step, last = rate, torch.full_like(rate, torch.inf)
    v = descent(x)
    f = m.frame(x)
    h = m._coords(f, v)
    for _ in range(ITERATIONS):
        size = m._dot(h, h).sqrt().to(rate.dtype)
        rate = torch.where(size > last, rate / 2, rate)
        stuck = (size <= eps**0.75) & (size >= last / 2)  # rounding: it no longer falls
        if ((size <= 16 * eps) | stuck | size.isnan()).all():
            break
        last = torch.minimum(size, last)
        x = m.exp(x, _times(rate * step, v))
        to, v = m.frame(x), descent(x)
        after = m._coords(to, v)
        old = m._carry(f, to, h)
        step = _barzilai_borwein(m, old, after, rate * step)
        f, h = to, after
    failed = ~(size <= eps**0.75)
    if failed.any():
        warnings.warn(
            f"mean: {int(failed.sum())} of {failed.numel()} did not converge; the points may lie too far apart to have "
            "one mean. The result is NaN there.",
            ConvergenceWarning,
            stacklevel=5,
        )
    return each(lambda t: torch.where(bcast(failed, t.ndim - failed.ndim), torch.nan, t), x)


def _barzilai_borwein(m: Manifold, old: Any, new: Any, step: Tensor) -> Tensor:
    """The step for which the last change of the gradient, from -old to -new over step * old, would lead to zero: from a
    tenth to two, one where the curvature is not positive."""
    along, square = (m._dot(old, a).to(step.dtype) for a in (new, old))
    slope = square - along
    return torch.where(slope > 0, (step * square / slope).clamp(0.1, 2), 1.0)


def _times(rate: Tensor, v: Any) -> Any:
    return each(lambda t: bcast(rate, t.ndim - rate.ndim).to(t.dtype) * t, v)


def _attached(m: Manifold, x: Any, descent: Any) -> Any:
    """x with its derivatives: those of the coordinates z at x in which the gradient at exp(x, push(x, z)) vanishes."""
    shape = as_tuple(m.pull(x, x))

    def at(z: Tensor) -> Any:
        h = unravel(z, shape, m.block_ndims)
        return m.exp(x, m.push(x, h if len(shape) > 1 else h[0]))

    def residual(z: Tensor) -> Tensor:
        y = at(z)
        return ravel(as_tuple(m.coords(y, descent(y))), m.block_ndims)

    return at(with_derivatives(residual, ravel(shape, m.block_ndims) * 0))
