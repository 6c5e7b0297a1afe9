"""A parameter, or several that are one, as the point of a manifold."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from steepest.optim.axes import pattern_error
from steepest.optim.constrain import Constraint, stored_precision


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """The tensors of one point, their names, and the manifold on which they lie."""

    params: tuple[Tensor, ...]
    names: tuple[str, ...]
    constraint: Constraint

    @functools.cached_property
    def layout(self) -> Any:
        """Shapes, dtypes and devices."""
        return tuple((tuple(p.shape), p.dtype, p.device) for p in self.params)

    def has_grad(self) -> bool:
        """Whether there is anything to do, as in tensors without entries there is not; gradients of only some of the
        tensors, and sparse ones, are an error."""
        have = [p.grad is not None for p in self.params]
        if any(have) and not all(have):
            missing = ", ".join(n for n, h in zip(self.names, have, strict=True) if not h)
            raise ValueError(f"{missing} has no gradient, but the rest of its point ({', '.join(self.names)}) has one")
        for name, p in zip(self.names, self.params, strict=True):
            if p.grad is not None and p.grad.is_sparse:
                raise ValueError(
                    f"{name}: has a sparse gradient, expected a dense one; build its module with sparse=False"
                )
        return all(have) and any(p.numel() for p in self.params)

    def grads(self) -> list[Tensor]:
        """The tensors' gradients."""
        return [p.grad for p in self.params if p.grad is not None]

    def value(self) -> Any:
        """The point, computed with in at least float32."""
        return self.constraint.point(self.params)

    def pull(self) -> Any:
        """Coordinates of the gradient."""
        return self.constraint.manifold.pull(self.value(), self.constraint.point(self.grads()))

    def check(self) -> None:
        """Refuse a pattern that does not fit and a point off its manifold."""
        for name, p, pattern in zip(self.names, self.params, self.constraint.matrix, strict=True):
            if pattern is not None and (fault := pattern_error(tuple(p.shape), pattern, self.constraint.sizes)):
                raise ValueError(f"{name}: {fault}")
        if any(p.is_meta for p in self.params):
            return
        with torch.no_grad():
            self.constraint.manifold.check_point(self.value(), ", ".join(self.names), stored_precision(self.params[0]))
