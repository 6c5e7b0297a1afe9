"""The Lyapunov equation with a symmetric positive definite matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steepest.linalg.autograd import Rule
from steepest.linalg.precision import widen
from steepest.linalg.shapes import require_square
from steepest.linalg.symmetric import sym


def lyapunov(a: Tensor, c: Tensor) -> Tensor:
    """X that solves a X + X a = c, for symmetric positive semidefinite a; all `(*b, n, n)`.

    With a = V diag(w) V^T, X = V (V^T c V / (w_i + w_j)) V^T. Where w_i + w_j is not above 2 n eps max|w| (zero to
    rounding, or negative) that component of X is zero: X is the solution of least norm of the solvable part.

    Its derivatives, of any order, are Lyapunov equations with the same a, finite at repeated eigenvalues.
    """
    require_square(a, "a")
    require_square(c, "c")
    if a.shape[-1] != c.shape[-1]:
        raise ValueError(f"c: expected matrices of the size of a, {tuple(a.shape)}, got shape {tuple(c.shape)}")
    s, rhs = sym(widen(a)), widen(c)
    w, v = torch.linalg.eigh(s.detach())
    batch = torch.broadcast_shapes(a.shape, c.shape)
    return _Solve.call(s.expand(batch), rhs.expand(batch), w, v).to(c.dtype)


class _Solve(Rule):
    """The solution X of A X + X A = C, given the eigenvalues w and eigenvectors v of A; self-adjoint in C."""

    @staticmethod
    def forward(a: Tensor, c: Tensor, w: Tensor, v: Tensor) -> Tensor:
        sums = w.unsqueeze(-1) + w.unsqueeze(-2)
        zero = 2 * w.shape[-1] * torch.finfo(w.dtype).eps * w.abs().amax(-1, keepdim=True).unsqueeze(-1)
        inverse = torch.where(sums > zero, 1 / sums, 0)
        return v @ (inverse * (v.mT @ c @ v)) @ v.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        a, _, w, v = inputs
        ctx.save_for_backward(a, output, w, v)
        ctx.save_for_forward(a, output, w, v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        a, x, w, v = ctx.saved_tensors
        y = _Solve.call(a, g, w, v)
        return -sym(y @ x.mT + x.mT @ y), y, None, None

    @staticmethod
    def tangent(ctx: Any, da: Tensor | None, dc: Tensor | None, *_: None) -> Tensor:
        a, x, w, v = ctx.saved_tensors
        moved = 0 if da is None else da @ x + x @ da
        return _Solve.call(a, (0 if dc is None else dc) - moved, w, v)
