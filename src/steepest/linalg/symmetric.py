"""Functions of symmetric and Hermitian matrices, with derivatives that are exact at repeated eigenvalues.

Autograd through an eigendecomposition divides by gaps between eigenvalues: NaN at the identity, wrong digits near it.
The derivative of f(A) itself has no such gap. With A = V diag(w) V^H it is (Daleckii and Krein, 1965; Higham, Functions
of Matrices, 2008, theorem 3.11)

    Df(A)[E] = V (f[w_i, w_j] * V^H E V) V^H,    f[a, b] = (f(b) - f(a)) / (b - a),  f[a, a] = f'(a),

and the higher ones are sums over the orders of their arguments, in the eigenbasis, of

    D2f(A)[E, H]_ij = sum_k f[w_i, w_k, w_j] (E_ik H_kj + H_ik E_kj),
    D3f(A)[E, H, K]_ij = sum_kl f[w_i, w_k, w_l, w_j] (E_ik H_kl K_lj + 5 others),

in memory n^3 and n^4. Each is symmetric in all its arguments, and so is its inner product Re<., G> with one more, which
is why no derivative needs a formula of its own backward. Three derivatives work, backward and forward, under
`torch.func`, and for complex matrices; fourth derivatives raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steepest.linalg.autograd import Rule, plain
from steepest.linalg.dispatch import products_exponentiate
from steepest.linalg.eigen import eigh, eigvalsh
from steepest.linalg.expm import taylor_exp
from steepest.linalg.precision import widen
from steepest.linalg.products import congruence, product
from steepest.linalg.scalars import (
    ANGLE_OVER_SINE,
    EXP,
    INV_SQRT,
    LOG,
    SQRT,
    Remembered,
    Scalar,
    divided_differences,
    power,
)
from steepest.linalg.shapes import require_square


def sym(a: Tensor) -> Tensor:
    """Hermitian part (a + a^H) / 2 of a `(*b, n, n)`: the nearest symmetric (of a complex a, Hermitian) matrix."""
    require_square(a, "a")
    return 0.5 * (a + a.mH)


def skew(a: Tensor) -> Tensor:
    """Skew-Hermitian part (a - a^H) / 2 of a `(*b, n, n)`: the nearest skew (of a complex a, skew-Hermitian) matrix."""
    require_square(a, "a")
    return 0.5 * (a - a.mH)


def sym_exp(a: Tensor) -> Tensor:
    """Matrix exponential of the symmetric or Hermitian a `(*b, n, n)`."""
    return sym_function(a, EXP)


def sym_log(a: Tensor) -> Tensor:
    """Matrix logarithm of the positive definite a `(*b, n, n)`. An eigenvalue that rounding has made zero or negative
    counts as n eps times the largest."""
    return sym_function(a, LOG)


def sym_sqrt(a: Tensor) -> Tensor:
    """Positive square root of the positive semidefinite a `(*b, n, n)`; differentiable where a is definite."""
    return sym_function(a, SQRT)


def sym_inv_sqrt(a: Tensor) -> Tensor:
    """Inverse of the positive square root of the positive definite a `(*b, n, n)`."""
    return sym_function(a, INV_SQRT)


def sym_power(a: Tensor, p: float) -> Tensor:
    """a^p of the Hermitian a `(*b, n, n)`; a positive definite, semidefinite for p > 0, any sign for an integral p."""
    return sym_function(a, power(p))


def sym_angle_over_sine(a: Tensor) -> Tensor:
    """arccos(a) / sin(arccos(a)) of the symmetric a `(*b, n, n)` with eigenvalues in [0, 1]: smooth at one, where an
    angle is zero; above one by rounding counts as one."""
    return sym_function(a, ANGLE_OVER_SINE)


# Fused with what they are used for. -----------------------------------------------------------------------------------


def exp_root(m: Tensor, a: Tensor) -> Tensor:
    """An R with R R^H = M exp(A) M^H, for M and Hermitian A, `(*b, n, n)`: M exp(A / 2), or that times a unitary
    matrix where nothing is to be derived from it, which one is a matter of the shape."""
    if not plain(m, a):
        return m @ sym_exp(a / 2)
    if products_exponentiate(a):
        return m @ taylor_exp(a / 2)
    w, v = eigh(a)
    return product(m, v) * (w / 2).exp().unsqueeze(-2)


def log_congruence(m: Tensor, a: Tensor) -> Tensor:
    """M log(A) M^H, for M and positive definite A, `(*b, n, n)`."""
    if not plain(m, a):
        return congruence(m, sym_log(a))
    w, v = _eigen(a, LOG)
    v = product(m, v)
    return product(v * w.log().unsqueeze(-2), v.mH)


def log_norm(a: Tensor) -> Tensor:
    """Frobenius norm of log(A), `(*b,)`, for positive definite A `(*b, n, n)`; its derivative at A = I counts as
    zero."""
    if not plain(a):
        return torch.linalg.vector_norm(sym_log(a), dim=(-2, -1))
    return torch.linalg.vector_norm(_mended(eigvalsh(a), LOG).log(), dim=-1)


# Derivatives along a direction. ---------------------------------------------------------------------------------------


def sym_exp_derivative(a: Tensor, e: Tensor) -> Tensor:
    """D exp(a)[e], `(*b, n, n)`: the derivative of `sym_exp` at a, of any sign, along the Hermitian part of e.

    Linear and self-adjoint in e, twice differentiable in a. The inverse map is `sym_log_derivative(sym_exp(a), .)`.
    """
    return _spectral_derivative(a, e, EXP)


def sym_log_derivative(a: Tensor, e: Tensor) -> Tensor:
    """D log(a)[e], `(*b, n, n)`: the derivative of `sym_log` at the positive definite a along the Hermitian part of e.

    Linear and self-adjoint in e, twice differentiable in a. The inverse map is `sym_exp_derivative(sym_log(a), .)`.
    """
    return _spectral_derivative(a, e, LOG)


def sym_power_derivative(a: Tensor, e: Tensor, p: float) -> Tensor:
    """D a^p [e], `(*b, n, n)`: the derivative of `sym_power` at a along the Hermitian part of e.

    a is positive definite, or of any sign for an integral p >= 0. Linear and self-adjoint in e, twice differentiable in
    a. The inverse map, for positive definite a and p != 0, is `sym_power_derivative(sym_power(a, p), ., 1 / p)`.
    """
    return _spectral_derivative(a, e, power(p))


# The matrix function and its three derivatives. -----------------------------------------------------------------------


def sym_function(a: Tensor, f: Scalar) -> Tensor:
    """f(a) of the symmetric or Hermitian a `(*b, n, n)`, for any function of `Scalar` with its divided differences."""
    s = sym(widen(a))
    return _Value.call(_remembering(f), s, *_eigen(s, f)).to(a.dtype)


def _spectral_derivative(a: Tensor, e: Tensor, f: Scalar) -> Tensor:
    require_square(a, "a")
    require_square(e, "e")
    if a.shape[-1] != e.shape[-1]:
        raise ValueError(f"e: expected matrices of the size of a, {tuple(a.shape)}, got shape {tuple(e.shape)}")
    s = sym(widen(a))
    w, v = _eigen(s, f)
    s, d = torch.broadcast_tensors(s, widen(e))
    return _First.call(_remembering(f), s, w, v, d).to(e.dtype)


def _remembering(f: Scalar) -> Scalar:
    return f if torch.compiler.is_compiling() else Remembered.of(f)


def _differences(w: Tensor, order: int, f: Scalar) -> Tensor:
    """Divided differences of the eigenvalues that belong to f, from its memory where they are there."""
    if not isinstance(f, Remembered) or not plain(w):
        return divided_differences(w, order, f)
    if order not in f.known:
        f.known[order] = divided_differences(w, order, f)
    return f.known[order]


def _eigen(s: Tensor, f: Scalar) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of s; they carry no derivative."""
    w, v = eigh(s.detach())
    return (_mended(w, f) if f.positive else w), v


def _mended(w: Tensor, f: Scalar) -> Tensor:
    """Ascending eigenvalues of a semidefinite matrix, with those that rounding alone made zero or negative."""
    if w.is_cpu and w.numel() and plain(w) and w.min().item() > 0:
        return w
    rounding = w.shape[-1] * torch.finfo(w.dtype).eps * w.abs().amax(-1, keepdim=True)
    return torch.where((w <= 0) & (w >= -rounding), f.least * rounding, w)


class Multilinear(Rule):
    """A Rule that is linear in some of its arguments, and whose `tangent` is made of such Rules only.

    None in the place of an argument stands for zero, and so does the result then: tangents of zeros, which torch gives
    by default, would cost a derivative of one order more for nothing.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.eager = type(cls.__name__, (cls,), {"jvp": staticmethod(cls.tangent)})

    @classmethod
    def call(cls, *args: Any) -> Any:
        """What `Rule.call` gives, or None if an argument is None."""
        if any(x is None for x in args):
            return None
        if plain(*args):
            return cls.forward(*args)
        return (cls if torch.compiler.is_compiling() else cls.eager).apply(*args)  # Dynamo does not take super().call

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """What `Rule.setup_context` does, and no zeros for missing tangents."""
        Rule.setup_context(ctx, inputs, output)
        ctx.set_materialize_grads(False)


class _Total(Multilinear):
    """The sum of tensors of one shape."""

    @staticmethod
    def forward(*parts: Tensor) -> Tensor:
        return sum(parts[1:], parts[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return (g,) * len(ctx.needs_input_grad)

    @staticmethod
    def tangent(ctx: Any, *tangents: Tensor | None) -> Any:
        return total(*tangents)


def total(*parts: Tensor | None) -> Tensor | None:
    """The sum of the parts that are there.

    Inside a `tangent` torch differentiates nothing forward but the results of Rules: with a plain `+` an outer
    `torch.func.jvp` would be zero without a word.
    """
    there = [part for part in parts if part is not None]
    return there[0] if len(there) == 1 else _Total.call(*there)


class _Derivative(Multilinear):
    """D^m f(A)[E_1, ..., E_m], of arguments f, A, its eigenvalues w and eigenvectors v, and E_1, ..., E_m."""

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        # Re<D^m f(A)[E_1, ...], G> is symmetric in G and every E, so the adjoint is the derivative itself.
        return _Derivative.parts(ctx, [g if needed else None for needed in ctx.needs_input_grad])

    @staticmethod
    def tangent(ctx: Any, *tangents: Tensor | None) -> Any:
        return total(*_Derivative.parts(ctx, tangents))

    @staticmethod
    def parts(ctx: Any, tangents: Sequence[Tensor | None]) -> tuple[Any, ...]:
        """What each argument's tangent adds: that of A is one more direction, that of a direction takes its place."""
        _, da, _, _, *de = tangents
        a, w, v, *e = ctx.saved_tensors
        same, higher = (partial(ORDERS[m].call, *ctx.rest, a, w, v) for m in (len(e), len(e) + 1))
        turned = (same(*e[:i], d, *e[i + 1 :]) for i, d in enumerate(de))
        return None, higher(*e, da), None, None, *turned


class _Value(_Derivative):
    @staticmethod
    def forward(f: Scalar, a: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return product(v * f.value(w).unsqueeze(-2), v.mH)


class _First(_Derivative):
    @staticmethod
    def forward(f: Scalar, a: Tensor, w: Tensor, v: Tensor, e: Tensor) -> Tensor:
        return congruence(v, _differences(w, 1, f) * congruence(v.mH, sym(e)))


class _Second(_Derivative):
    @staticmethod
    def forward(f: Scalar, a: Tensor, w: Tensor, v: Tensor, e: Tensor, h: Tensor) -> Tensor:
        e, h = (congruence(v.mH, sym(x)) for x in (e, h))
        slopes = _differences(w, 2, f).to(v.dtype)
        half = torch.einsum("...ikj,...ik,...kj->...ij", slopes, e, h)
        return congruence(v, half + half.mH)


class _Third(_Derivative):
    @staticmethod
    def forward(f: Scalar, a: Tensor, w: Tensor, v: Tensor, e: Tensor, h: Tensor, k: Tensor) -> Tensor:
        e, h, k = (congruence(v.mH, sym(x)) for x in (e, h, k))
        slopes = _differences(w, 3, f).to(v.dtype)

        def term(pairs: Tensor, last: Tensor) -> Tensor:
            return torch.einsum("...iklj,...ikl,...lj->...ij", slopes, pairs, last)

        # The orders E H K, H E K and E K H; the other three are their adjoints.
        half = term(_pairs(e, h) + _pairs(h, e), k) + term(_pairs(e, k), h)
        return congruence(v, half + half.mH)


def _pairs(e: Tensor, h: Tensor) -> Tensor:
    """E_ik H_kl, `(*b, n, n, n)`."""
    return e.unsqueeze(-1) * h.unsqueeze(-3)


class _Fourth(_Derivative):
    @staticmethod
    def forward(*_: Any) -> Any:
        raise NotImplementedError("fourth derivatives of functions of symmetric matrices are not implemented")


ORDERS: tuple[type[_Derivative], ...] = (_Value, _First, _Second, _Third, _Fourth)
