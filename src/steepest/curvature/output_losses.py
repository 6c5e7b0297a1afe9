"""Losses as functions of a model's outputs alone: how they bend there is known in closed form."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from steepest.linalg.precision import double


class OutputLoss(abc.ABC):
    """The mean over b rows of a convex function of a row of outputs, at one place.

    With z `(b, C)` the outputs, `residual` is the gradient r of the b terms, and Q, block by block, their Hessian; both
    without the mean's 1 / b. Q may be singular: it is written as S S^T, and r = S w. Vectors `(*, b, C)` may have
    dimensions before. All is in float64 and carries no derivative, but `z`, which is the model's.
    """

    z: Tensor
    """The rows that count, with their graph."""
    loss: Tensor
    """Their mean loss."""
    residual: Tensor
    """r `(b, C)`."""
    white: Tensor
    """w `(b, C)`."""

    @abc.abstractmethod
    def bend(self, v: Tensor) -> Tensor:
        """Q v."""

    @abc.abstractmethod
    def root(self, v: Tensor) -> Tensor:
        """S v."""

    @abc.abstractmethod
    def root_t(self, v: Tensor) -> Tensor:
        """S^T v."""

    def change(self, v: Tensor) -> Tensor:
        """What a change v of z does to the mean loss, to second order."""
        return (v * (self.residual + self.bend(v) / 2)).sum() / len(self.residual)


class Squared(OutputLoss):
    """|z - y|^2 / 2, for outputs `(*, C)`, or `(b,)`, which are rows of one number."""

    def __init__(self, z: Tensor, y: Tensor) -> None:
        if z.shape != y.shape or z.ndim == 0:
            raise ValueError(
                f"targets: shape {tuple(y.shape)} is not that of the model's outputs, {tuple(z.shape)}; of (b,) and "
                "(b, 1) one would be spread over the other, so reshape one of them"
            )
        columns = z.shape[-1] if z.ndim > 1 else 1
        self.z = z.reshape(-1, columns)
        self.residual = self.white = double((z - y).detach()).reshape(-1, columns)
        self.loss = self.residual.square().sum() / (2 * len(self.residual))

    def bend(self, v: Tensor) -> Tensor:
        """v."""
        return v

    def root(self, v: Tensor) -> Tensor:
        """v."""
        return v

    def root_t(self, v: Tensor) -> Tensor:
        """v."""
        return v


class CrossEntropy(OutputLoss):
    """-sum_c y_c log softmax(z)_c, for outputs `(*, C)` and classes `(*,)`, or their probabilities `(*, C)`.

    Q = diag(p) - p p^T = S S^T with S = diag(s) - p s^T, s = sqrt(p): the product is diag(p) - 2 p p^T + p (s^T s) p^T,
    and s^T s = 1. As 1^T (p - y) = 0, S w = p - y for w = (p - y) / s, entry by entry. Nothing is added to Q, which is
    singular always. A p below float64's smallest number counts as that.

    Args:
        z: outputs.
        y: classes or probabilities.
        ignore_index: rows with this class do not count.
    """

    def __init__(self, z: Tensor, y: Tensor, ignore_index: int = -100) -> None:
        columns = z.shape[-1] if z.ndim > 1 else 0
        if columns == 0 or tuple(y.shape) != tuple(z.shape[:-1] if not y.is_floating_point() else z.shape):
            raise ValueError(
                f"targets: shape {tuple(y.shape)} and dtype {y.dtype} do not fit outputs of shape {tuple(z.shape)}: "
                "expected outputs (*, C), and classes (*,) or probabilities (*, C)"
            )
        z = z.reshape(-1, columns)
        if not y.is_floating_point():
            rows = (y.reshape(-1) != ignore_index).nonzero().squeeze(-1)
            z, y = z[rows], y.reshape(-1)[rows]
            if len(rows) and not (bool((y >= 0).all()) and bool((y < columns).all())):
                raise ValueError(f"targets: classes run from {y.min()} to {y.max()}, expected 0 to {columns - 1}")
            y = torch.nn.functional.one_hot(y, columns)
        elif not bool(((y.sum(-1) - 1).abs() <= 1e-2).all()):
            raise ValueError("targets: probabilities must sum to one in each row; pass classes as integers")
        if len(z) == 0:
            raise ValueError(f"targets: no row counts; all of them are {ignore_index}, or there are none")
        y = double(y.reshape(-1, columns))
        self.z, y = z, y / y.sum(-1, keepdim=True)
        log_p = double(z.detach()).log_softmax(-1)
        self.p = log_p.exp()
        self.s = self.p.clamp_min(torch.finfo(self.p.dtype).tiny).sqrt()
        self.residual = self.p - y
        self.white = self.residual / self.s
        self.loss = -torch.where(y > 0, y * log_p, 0).sum() / len(z)

    def bend(self, v: Tensor) -> Tensor:
        """p v - p (p^T v)."""
        pv = self.p * v
        return pv - self.p * pv.sum(-1, keepdim=True)

    def root(self, v: Tensor) -> Tensor:
        """s v - p (s^T v)."""
        sv = self.s * v
        return sv - self.p * sv.sum(-1, keepdim=True)

    def root_t(self, v: Tensor) -> Tensor:
        """s v - s (p^T v)."""
        return self.s * (v - (self.p * v).sum(-1, keepdim=True))
