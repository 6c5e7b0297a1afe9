"""The Lyapunov equation with a Hermitian positive definite matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steepest.linalg.autograd import Rule
from steepest.linalg.eigen import eigh
from steepest.linalg.precision import widen
from steepest.linalg.shapes import require_square
from steepest.linalg.symmetric import sym


def lyapunov(a: Tensor, c: Tensor) -> Tensor:
    """X that solves a X + X a = c, for symmetric (or Hermitian) positive semidefinite a; all `(*b, n, n)`.

    With a = V diag(w) V^H, X = V (V^H c V / (w_i + w_j)) V^H. Where w_i + w_j is not above 2 n eps max|w| (zero to
    rounding, or negative) that component of X is zero: X is the solution of least norm of the solvable part.

    Its derivatives, of any order, are Lyapunov equations with the same a, finite at repeated eigenvalues.
    """
    require_square(a, "a")
    require_square(c, "c")
    if a.shape[-1] != c.shape[-1]:
        raise ValueError(f"c: expected matrices of the size of a, {tuple(a.shape)}, got shape {tuple(c.shape)}")
    s, rhs = sym(widen(a)), widen(c)
    w, v = eigh(s.detach())
    sums = w.unsqueeze(-1) + w.unsqueeze(-2)
    zero = 2 * w.shape[-1] * torch.finfo(w.dtype).eps * w.abs().amax(-1, keepdim=True).unsqueeze(-1)
    batch = torch.broadcast_shapes(a.shape, c.shape)
    inverse = torch.where(sums > zero, 1 / sums, 0)
    return lyapunov_by_eigenvectors(s.expand(batch), rhs.expand(batch), inverse, v).to(c.dtype)


def lyapunov_by_eigenvectors(a: Tensor, c: Tensor, inverse: Tensor, v: Tensor) -> Tensor:
    """X that solves a X + X a = c, given the eigenvectors v of a and `inverse`, 1 / (w_i + w_j); all `(*b, n, n)`.

    v and `inverse` carry no derivative: a does, in every order.
    """
    return _Solve.call(a, c, inverse, v)


class _Solve(Rule):
    """The solution X of A X + X A = C; self-adjoint in C, and its own derivative but for the right-hand side."""

    @staticmethod
    def forward(a: Tensor, c: Tensor, inverse: Tensor, v: Tensor) -> Tensor:
        return v @ (inverse * (v.mH @ c @ v)) @ v.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        a, _, inverse, v = inputs
        ctx.save_for_backward(a, output, inverse, v)
        ctx.save_for_forward(a, output, inverse, v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        a, x, inverse, v = ctx.saved_tensors
        y = _Solve.call(a, g, inverse, v)
        return -sym(y @ x.mH + x.mH @ y), y, None, None

    @staticmethod
    def tangent(ctx: Any, da: Tensor | None, dc: Tensor | None, *_: None) -> Tensor:
        a, x, inverse, v = ctx.saved_tensors
        moved = 0 if da is None else da @ x + x @ da
        return _Solve.call(a, (0 if dc is None else dc) - moved, inverse, v)
