"""Points, tangent vectors and coordinates: one tensor, or a tuple of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Tensors = Tensor | tuple[Tensor, ...]
"""One tensor, or a tuple of them."""


def as_tuple(x: Tensors) -> tuple[Tensor, ...]:
    """The tensors of a point, a tangent vector or coordinates, always as a tuple."""
    return x if isinstance(x, tuple) else (x,)


def like(x: Tensors, parts: Sequence[Tensor]) -> Tensors:
    """`parts` packed as `x` is: a bare tensor for a bare tensor."""
    return tuple(parts) if isinstance(x, tuple) else parts[0]


def each(function: Callable[..., Tensor], x: Any, *others: Any) -> Any:
    """The function of the tensors of x and of the others in turn, packed as x is."""
    return like(x, [function(*parts) for parts in zip(as_tuple(x), *map(as_tuple, others), strict=True)])


def total(x: Tensor, ndim: int) -> Tensor:
    """Sum over the last `ndim` dimensions; torch's own sum over none of them would sum over all."""
    return x.sum(tuple(range(-ndim, 0))) if ndim else x


def bcast(t: Tensor, ndim: int) -> Tensor:
    """One number per batch element, `(*b,)`, shaped to multiply tensors `(*b, ...)` with `ndim` more dimensions."""
    return t.reshape(*t.shape, *[1] * ndim)
