"""Several functions on a manifold: their values, and their gradients as the rows of a matrix of coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import as_tuple, each, like
from steepest.solvers.problem import Iterate, Problem

Functions = Callable[[Any], Any] | Sequence[Callable[[Any], Tensor]]


class Objectives(Problem):
    """m real functions; the one function of this `Problem` is their mean.

    Args:
        functions: one that takes a point and returns all values, `(m,)` or a sequence of numbers as tensors; or a
            sequence of functions, each of which returns one.
        manifold: where the points live.
        seed: of all that is random.
    """

    def __init__(self, functions: Functions, manifold: Manifold, seed: int = 0) -> None:
        super().__init__(lambda x: self._together(x).mean(), manifold, seed=seed)
        self.functions = functions

    def _together(self, x: Any) -> Tensor:
        """The values, `(m,)`."""
        found = self.functions(x) if callable(self.functions) else [f(x) for f in self.functions]
        if isinstance(found, list | tuple) and all(isinstance(f, Tensor) and f.numel() == 1 for f in found):
            found = torch.stack([f.reshape(()) for f in found]) if found else None
        if not isinstance(found, Tensor) or found.ndim != 1 or not len(found) or found.is_complex():
            got = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"functions: got {got}, expected the real values of all objectives, a tensor of shape (m,)")
        return found

    def each_value(self, at: Iterate) -> Tensor:
        """The values in float64, `(m,)`; infinite where they are NaN."""
        self.evaluations.values += 1
        with torch.no_grad():
            return _real(self._together(at.x))

    def jacobian(self, at: Iterate) -> tuple[Tensor, Tensor]:
        """The values, and the Riemannian gradients `(m, n)`."""
        self.evaluations.values += 1
        with torch.enable_grad():
            leaf = each(lambda t: t.detach().requires_grad_(), at.x)
            values = self._together(leaf)
            self.evaluations.gradients += len(values)
            rows = [self._row(at, v, as_tuple(leaf)) for v in values]
        at.value = float(_real(values).mean())  # known now
        return _real(values), torch.stack(rows)

    def _row(self, at: Iterate, value: Tensor, leaves: tuple[Tensor, ...]) -> Tensor:
        if not value.requires_grad:
            return at.ravel(self.manifold._pull(at.frame, like(at.x, [torch.zeros_like(t) for t in leaves])))
        g = torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)
        with torch.no_grad():
            return at.ravel(self.manifold._pull(at.frame, like(at.x, g)))


def _real(values: Tensor) -> Tensor:
    values = values.detach().cpu().double()
    return torch.where(values.isnan(), torch.inf, values)
