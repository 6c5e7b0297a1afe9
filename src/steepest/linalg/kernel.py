"""Kernels: a function phi of two eigenvalues acts on a matrix, entry by entry, in the eigenbasis of another.

With A = V diag(w) V^H the operator is Y(A)[G] = V (phi(w_i, w_j) * V^H G V) V^H. Its derivative in A, along E, is in
the eigenbasis

    DY(A)[E; G]_ij = sum_k phi[w_i, w_k; w_j] E_ik G_kj + phi[w_i; w_k, w_j] G_ik E_kj,
    phi[a, b; c] = (phi(a, c) - phi(b, c)) / (a - b),  phi[a, a; c] = the partial derivative of phi(., c) at a,

the second term the adjoint of the first, as phi is symmetric (the rule of Daleckii and Krein, 1965, for double operator
integrals).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from steepest.linalg.eigen import eigh
from steepest.linalg.precision import widen
from steepest.linalg.products import congruence
from steepest.linalg.shapes import require_square
from steepest.linalg.symmetric import Multilinear, sym, total

Kernel = Callable[[Tensor, Tensor], Tensor]


def sym_kernel(a: Tensor, g: Tensor, phi: Kernel) -> Tensor:
    """V (phi(w_i, w_j) * (V^H sym(g) V)) V^H, for positive definite a = V diag(w) V^H; all `(*b, n, n)`.

    phi(x, y) is a symmetric, smooth, real function of two positive numbers, written with torch operations that act
    entry by entry on tensors of any one shape. The map is linear and self-adjoint in g, and positive where phi is; for
    one a, maps compose as their phi multiply: `lambda x, y: x * y` gives a g a, the logarithmic mean
    m = (x - y) / (log x - log y) gives L[g] = D exp(log a)[g] (`sym_exp_derivative`), and m^2 gives L[L[g]].

    Differentiable to any order in g, once in a, and in both together; a second derivative in a raises
    NotImplementedError. phi counts as a constant: nothing flows to tensors that it holds.

    The derivative in a exists at repeated eigenvalues. Where two eigenvalues are further apart than eps^(1/3) of the
    larger, it is the quotient of differences of phi, which errs by eps over the relative gap; elsewhere it is the
    partial derivative of phi at their midpoint, by autograd, which errs by the gap's square, and not at all where
    they are equal. Both are eps^(2/3) at the bound: 4e-11 in float64, 2e-5 in float32. That asks of phi that it be
    right to rounding near x = y, and right in its derivative too: a `torch.where` hides a 0 / 0 from the value, and
    not from the derivative.

    Raises:
        ValueError: a or g is not square, or they differ in size.
    """
    require_square(a, "a")
    require_square(g, "g")
    if a.shape[-1] != g.shape[-1]:
        raise ValueError(f"g: expected matrices of the size of a, {tuple(a.shape)}, got shape {tuple(g.shape)}")
    s = sym(widen(a))
    w, v = eigh(s.detach())
    s, wide = torch.broadcast_tensors(s, widen(g))
    return _Kernel.call(s, wide, w, v, phi).to(g.dtype)


def _values(w: Tensor, phi: Kernel) -> Tensor:
    """phi(w_i, w_j), `(*b, n, n)`."""
    return phi(*torch.broadcast_tensors(w.unsqueeze(-1), w.unsqueeze(-2)))


def _slopes(w: Tensor, phi: Kernel) -> Tensor:
    """phi[w_i, w_k; w_j], `(*b, n, n, n)`."""
    a, b, c = torch.broadcast_tensors(w[..., :, None, None], w[..., None, :, None], w[..., None, None, :])
    near = (a - b).abs() <= torch.finfo(w.dtype).eps ** (1 / 3) * torch.maximum(a.abs(), b.abs())
    values = _values(w, phi)
    quotient = (values.unsqueeze(-2) - values.unsqueeze(-3)) / torch.where(near, 1, a - b)
    # phi acts entry by entry, so the gradient of its sum holds the partial derivatives; a jvp would not nest in others.
    partial = grad(lambda x: phi(x, c).sum())(0.5 * (a + b))
    return torch.where(near, partial, quotient)


class _Kernel(Multilinear):
    """Y(A)[G], given the eigenvalues w and eigenvectors v of A: linear and self-adjoint in G."""

    @staticmethod
    def forward(a: Tensor, g: Tensor, w: Tensor, v: Tensor, phi: Kernel) -> Tensor:
        return congruence(v, _values(w, phi) * congruence(v.mH, sym(g)))

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> Any:
        a, g, *rest = _arguments(ctx)
        wanted = ctx.needs_input_grad[0]  # n^3 numbers and not n^2
        da = _Against.call(_Once.call(a), g, c, *rest) if wanted else None
        return da, _Kernel.call(a, c, *rest), None, None, None

    @staticmethod
    def tangent(ctx: Any, da: Tensor | None, dg: Tensor | None, *_: None) -> Any:
        a, g, *rest = _arguments(ctx)
        moved = None if da is None else _Along.call(_Once.call(a), da, g, *rest)
        return total(moved, _Kernel.call(a, dg, *rest))


class _Along(Multilinear):
    """DY(A)[E; G]: linear in E and in G, self-adjoint in G for each E."""

    @staticmethod
    def forward(a: Tensor, e: Tensor, g: Tensor, w: Tensor, v: Tensor, phi: Kernel) -> Tensor:
        return _bilinear("...ikj,...ik,...kj->...ij", e, g, w, v, phi)

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> Any:
        a, e, g, *rest = _arguments(ctx)
        return torch.zeros_like(a), _Against.call(a, g, c, *rest), _Along.call(a, e, c, *rest), None, None, None

    @staticmethod
    def tangent(ctx: Any, da: None, de: Tensor | None, dg: Tensor | None, *_: None) -> Any:
        a, e, g, *rest = _arguments(ctx)
        return total(_Along.call(a, de, g, *rest), _Along.call(a, e, dg, *rest))


class _Against(Multilinear):
    """The adjoint of E -> DY(A)[E; G], applied to C: linear in G and in C, symmetric in the two."""

    @staticmethod
    def forward(a: Tensor, g: Tensor, c: Tensor, w: Tensor, v: Tensor, phi: Kernel) -> Tensor:
        return _bilinear("...ikj,...ij,...jk->...ik", g, c, w, v, phi)

    @staticmethod
    def backward(ctx: Any, e: Tensor | None) -> Any:
        a, g, c, *rest = _arguments(ctx)
        return torch.zeros_like(a), _Along.call(a, e, c, *rest), _Along.call(a, e, g, *rest), None, None, None

    @staticmethod
    def tangent(ctx: Any, da: None, dg: Tensor | None, dc: Tensor | None, *_: None) -> Any:
        a, g, c, *rest = _arguments(ctx)
        return total(_Against.call(a, dg, c, *rest), _Against.call(a, g, dc, *rest))


class _Once(Multilinear):
    """A where its first derivative was taken: a second one raises; one in other arguments does not come by here."""

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return a.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError("sym_kernel: second derivatives in a are not implemented, only first ones")

    tangent = backward


def _arguments(ctx: Any) -> list[Any]:
    return [*ctx.saved_tensors, *ctx.rest]


def _bilinear(equation: str, x: Tensor, y: Tensor, w: Tensor, v: Tensor, phi: Kernel) -> Tensor:
    x, y = (congruence(v.mH, sym(m)) for m in (x, y))
    half = torch.einsum(equation, _slopes(w, phi).to(x.dtype), x, y)
    return congruence(v, half + half.mH)
