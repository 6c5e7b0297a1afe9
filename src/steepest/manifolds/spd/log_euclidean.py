"""The log-Euclidean metric."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.linalg import double, sym_exp, sym_exp_derivative, sym_log, sym_log_derivative
from steepest.manifolds.spd.factors import cholesky, square
from steepest.manifolds.spd.flat import FlatMetric


@dataclasses.dataclass(frozen=True)
class LogEuclidean(FlatMetric):
    """tr(D log(X)[U] D log(X)[V]): the Frobenius metric of the matrix logarithms, flat.

    Coordinates are Hermitian matrices h `(*b, n, n)`, with C = log X: `push(X, h) = D exp(C)[h]`, which is its own
    adjoint. Distances are Frobenius distances of logarithms, means exponentials of mean logarithms. Invariant under
    X -> a Q X Q^H for unitary Q and a > 0, and under inversion. Computed in float64 inside, so that float32 matrices of
    a condition up to 1e7 keep their small eigenvalues.

    Arsigny, Fillard, Pennec and Ayache 2007 (SIAM Journal on Matrix Analysis and Applications 29).

    >>> from steepest.manifolds import LogEuclidean
    >>> x, y = torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([4.0, 1.0]))
    >>> torch.allclose(SPD(LogEuclidean()).mean(torch.stack([x, y])), 2 * torch.eye(2))
    True
    """

    name: ClassVar[str] = "log-euclidean"

    def frame(self, x: Tensor) -> Tensor:
        """log X."""
        return sym_log(double(x))

    def point(self, c: Tensor) -> Tensor:
        """exp C, as the square of exp(C / 2)."""
        return square(sym_exp(c / 2))

    def cholesky(self, c: Tensor) -> Tensor:
        """By exp C."""
        return cholesky(self.point(c))

    def push(self, c: Tensor, h: Tensor) -> Tensor:
        """D exp(C)[h]."""
        return sym_exp_derivative(c, h.to(c.dtype)).to(h.dtype)

    def pull(self, c: Tensor, g: Tensor) -> Tensor:
        """D exp(C)[G]."""
        return self.push(c, g)

    def coords(self, c: Tensor, v: Tensor) -> Tensor:
        """D log(X)[V]."""
        return sym_log_derivative(sym_exp(c), v.to(c.dtype)).to(v.dtype)

    def chart_derivative(self, x: Tensor, v: Tensor) -> Tensor:
        """D log(X)[V], from X itself: exp(log X) would have lost digits of its small eigenvalues."""
        return sym_log_derivative(double(x), double(v))

    def decay(self, c: Tensor, h: Tensor, rate: float) -> Tensor:
        """X has the coordinates D log(X)[X] = I."""
        return h + rate * torch.eye(c.shape[-1], dtype=h.dtype, device=h.device)
