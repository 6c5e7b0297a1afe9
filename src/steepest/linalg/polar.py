"""The polar factor U V^H of a matrix U S V^H: exactly, or at the grade that Muon needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.autograd import Rule
from steepest.linalg.eigen import eigh, svd
from steepest.linalg.lyapunov import lyapunov_by_eigenvectors
from steepest.linalg.precision import double, is_double, widen
from steepest.linalg.products import add_product
from steepest.linalg.shapes import require_matrix
from steepest.linalg.symmetric import sym

Triple = tuple[float, float, float]

# Minimax polynomials for singular values in [4e-3, 1], in turn; tests/linalg/test_polar.py derives them anew.
_POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.185466062991021, -23.30618884920108, 17.08798241353668),
    (3.95634367620541, -2.910707070011726, 0.551435433807701),
    (3.344840765312562, -2.508153342952671, 0.5122767267058382),
    (2.32405773040722, -1.689826711302735, 0.4210712462028747),
    (1.893772451269696, -1.270703798480942, 0.3770763345440141),
    (1.87500225246845, -1.250002502740444, 0.3750002502741326),
    (1.875, -1.25, 0.375),
)


def _shrunk(triples: tuple[Triple, ...], safety: float) -> tuple[Triple, ...]:
    """p(x / safety) in place of p(x), so that a singular value of up to `safety`, by rounding, does no harm.

    The last polynomial stays: it is the one repeated, and its fixed point must be 1.
    """
    return (*((a / safety, b / safety**3, c / safety**5) for a, b, c in triples[:-1]), triples[-1])


SCHEDULES: dict[str, tuple[Triple, ...]] = {
    "polar_express": _shrunk(_POLAR_EXPRESS, 1.01),
    "keller_jordan": ((3.4445, -4.7750, 2.0315),),
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}
"""Coefficients (a, b, c) of the odd polynomials a s + b s^3 + c s^5, one for each step; the last repeats.

`polar_express`: by the algorithm of Amsel, Persson, Musco and Gower, 2025, arXiv 2505.16932, for singular values of a
over its Schatten-4 norm. `keller_jordan`: Jordan et al., 2024, Muon; `quintic`: as in dion, HeavyBall and optax,
closest to 1 for singular values above 1e-2; both, and triples of your own, for a over its Frobenius norm.
"""


def polar(a: Tensor) -> Tensor:
    """Polar factor of a `(*b, m, n)`: U V^H for a = U S V^H, over the singular values that are not zero to rounding.

    A partial isometry: zero on the null space of a, zero for a = 0. A singular value counts as zero where it is at most
    16 eps times the largest, eps that of the dtype computed in. Entries may have any scale.

    float32 and below: through the eigenvalues of the Gram matrix in float64 where one side is at most 128 or twice
    shorter than the other (error below 1e-6, to condition number 1e5), else by SVD (eps times the condition number).
    float64: by SVD, after a QR where that saves work, since a Gram matrix would lose what lies below sqrt(eps).

    The derivative solves a Lyapunov equation with the Hermitian factor, finite at equal singular values (Kenney and
    Laub, 1991), and so do those of higher order; all exist. Where a has not full rank, the first is the derivative
    along matrices of the same rank, and the second is not defined.
    """
    require_matrix(a, "a")
    if not a.numel():
        return a.clone()
    x = _unit_scale(widen(a))
    u = _tall_polar(x.mH).mH if _wide(x) else _tall_polar(x)
    return u.to(a.dtype)


def orthogonalize(
    a: Tensor,
    schedule: str | Sequence[Triple] = "polar_express",
    steps: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Polar factor of a `(*b, m, n)` at Muon's grade: odd polynomials of a / |a|, products of matrices only.

    `polar_express` divides by the Schatten-4 norm, (sum of s^4)^(1/4), which bounds the largest singular value far more
    closely than the Frobenius norm does and falls out of the first product. Its four steps take a singular value s of
    the quotient to within 0.16 of 1 for s >= 4e-3, five steps to within 0.006, eight to within 0.001 for s >= 1e-3;
    smaller ones, less far up; zero stays zero. Four steps are as close to the polar factor as the usual five of
    Polar Express are on the Frobenius norm. Entries may have any scale.

    schedule: a name in `SCHEDULES`, or triples (a, b, c); beyond their end the last repeats.
    steps: number of polynomials; None: four of `polar_express`, five of any other.
    dtype: what the products run in. None: float32 (float64 for float64), and where one side is twice shorter and that
        is precise enough, the iteration runs on the small Gram matrix instead, about twice as fast.
        torch.bfloat16: Muon's own choice, with `keller_jordan` the very bits of `torch.optim.Muon`. A complex a takes
        the complex dtype of that precision, complex64 at least.
    """
    require_matrix(a, "a")
    closely = schedule == "polar_express"
    triples = _triples(schedule, (4 if closely else 5) if steps is None else steps)
    if not a.numel():
        return a.clone()
    x = _unit_scale(widen(a))
    tall = not _wide(x) and x.shape[-2] != x.shape[-1]
    x = x.mH if tall else x
    in_gram_space = dtype is None and _gram_pays(x, len(triples))
    if dtype is not None:
        x = x.to(torch.promote_types(dtype, torch.complex64) if x.is_complex() else dtype)
    iterate = _in_gram_space if in_gram_space else _in_full
    u = iterate(x, triples, closely)
    return (u.mH if tall else u).to(a.dtype)


# Exactly. -------------------------------------------------------------------------------------------------------------


def _tall_polar(a: Tensor) -> Tensor:
    return _Polar.call(a, *_factors(a.detach()))


def _factors(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U V^H of a tall A = U diag(s) V^H; also s, zero where it is zero to rounding, and V."""
    m, n = a.shape[-2:]
    if not is_double(a) and (n <= 128 or m >= 2 * n):
        return _by_gram(a)
    if m >= 1.5 * n:
        q, r = torch.linalg.qr(a)
        u, s, v = _by_svd(r)
        return q @ u, s, v
    return _by_svd(a)


class _Polar(Rule):
    """The polar factor of A, given itself, s and V, which carry no derivative."""

    @staticmethod
    def forward(a: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
        return u.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        a, _, s, v = inputs
        ctx.save_for_backward(a, output, s, v)
        ctx.save_for_forward(a, output, s, v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _derivative(g, *ctx.saved_tensors), None, None, None  # self-adjoint

    @staticmethod
    def tangent(ctx: Any, da: Tensor, *_: None) -> Tensor:
        return _derivative(da, *ctx.saved_tensors)


def _derivative(e: Tensor, a: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """U Omega + (I - U U^H) E H^+ with H = V diag(s) V^H = U^H A and Omega H + H Omega = U^H E - E^H U, Omega skew.

    The equations are solved by s and V; the derivatives of the next order go through U and H.
    """
    h, core = sym(u.mH @ a), u.mH @ e
    sums = s.unsqueeze(-1) + s.unsqueeze(-2)
    omega = lyapunov_by_eigenvectors(h, core - core.mH, _pseudo_inverse(sums), v)
    return u @ omega + _RightDivision.call(h, e - u @ core, _pseudo_inverse(s), v)


class _RightDivision(Rule):
    """Y = X H^-1, given H's eigenvectors v and `inverse`, the inverses of its eigenvalues; H carries the derivative."""

    @staticmethod
    def forward(h: Tensor, x: Tensor, inverse: Tensor, v: Tensor) -> Tensor:
        return x @ (v * inverse.unsqueeze(-2)) @ v.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        h, _, inverse, v = inputs
        ctx.save_for_backward(h, output, inverse, v)
        ctx.save_for_forward(h, output, inverse, v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        h, y, inverse, v = ctx.saved_tensors
        z = _RightDivision.call(h, g, inverse, v)
        return -sym(y.mH @ z), z, None, None

    @staticmethod
    def tangent(ctx: Any, dh: Tensor | None, dx: Tensor | None, *_: None) -> Tensor:
        h, y, inverse, v = ctx.saved_tensors
        moved = 0 if dh is None else y @ dh
        return _RightDivision.call(h, (0 if dx is None else dx) - moved, inverse, v)


def _by_gram(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A (A^H A)^(-1/2) in float64, which holds the squares of all that float32 can tell apart."""
    x = double(a)
    w, v = eigh(x.mH @ x)
    s = _numerical(w.clamp_min(0).sqrt(), a.dtype)
    u = x @ ((v * _pseudo_inverse(s).unsqueeze(-2)) @ v.mH)
    return u.to(a.dtype), s.to(a.real.dtype), v.to(a.dtype)


def _by_svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vt = svd(a)
    s = _numerical(s, a.dtype)
    return (u * (s > 0).unsqueeze(-2)) @ vt, s, vt.mH


def _numerical(s: Tensor, dtype: torch.dtype) -> Tensor:
    """Singular values, with those that rounding in `dtype` makes of zero put back to zero."""
    return torch.where(s > 16 * torch.finfo(dtype).eps * s.amax(-1, keepdim=True), s, 0)


def _pseudo_inverse(s: Tensor) -> Tensor:
    return torch.where(s > 0, 1 / s, 0)


# By polynomials. ------------------------------------------------------------------------------------------------------


def _triples(schedule: str | Sequence[Triple], steps: int) -> list[Triple]:
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule: unknown name {schedule!r}, expected one of {', '.join(SCHEDULES)}, or triples")
        schedule = SCHEDULES[schedule]
    if steps < 1 or not schedule or any(len(triple) != 3 for triple in schedule):
        raise ValueError(f"expected steps >= 1 and triples (a, b, c), got steps={steps}, schedule={schedule}")
    return [schedule[min(k, len(schedule) - 1)] for k in range(steps)]


def _in_full(x: Tensor, triples: list[Triple], closely: bool) -> Tensor:
    """The polynomials on the wide x itself, in its dtype; over the Frobenius norm operation by operation as in
    torch.optim.Muon, or `closely`, over the Schatten-4 norm."""
    if not closely:
        x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mH
    if closely:
        square = torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True).clamp(min=1e-14)
        x, gram = x * square.rsqrt(), gram / square
    for k, (a, b, c) in enumerate(triples):
        gram = x @ x.mH if k else gram
        update = add_product(gram, gram, gram, beta=b, alpha=c)
        x = add_product(x, update, x, beta=a)
    return x


def _gram_pays(x: Tensor, steps: int) -> bool:
    """Whether the wide x `(*b, m, n)` is iterated on faster, and as well, through its Gram matrix.

    A Gram matrix squares the condition number: in float32 it holds singular values down to 1e-3 |x|. That is all that
    five steps can lift; more steps need more, and products made of fewer bits hold less.
    """
    m, n = x.shape[-2:]
    return n >= 2 * m and (is_double(x) or (steps <= 5 and not _reduced_products(x.device.type)))


def _reduced_products(device: str) -> bool:
    """Whether torch was told to multiply float32 matrices in fewer bits (TF32, bfloat16) on this type of device."""
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    precision = getattr(getattr(backend, "matmul", None), "fp32_precision", None)  # torch >= 2.9
    return precision not in ("ieee", "none") if precision else torch.get_float32_matmul_precision() != "highest"


# What torch.compiler.assume_constant_result does; but that imports Dynamo, which takes longer than all of torch.
_reduced_products._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _in_gram_space(x: Tensor, triples: list[Triple], closely: bool) -> Tensor:
    """The same polynomials as x -> Z x, with Z the small inverse root of the Gram matrix."""
    flat = x.flatten(0, -3) if x.ndim > 3 else x
    product = torch.mm if flat.ndim == 2 else torch.bmm  # on small matrices `@` costs twice as much
    y = product(flat, flat.mH)
    trace = _trace(y)
    square = torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True).clamp_min(1e-14) if closely else trace
    return product(_inverse_root(y, _rounding(trace), square, triples), flat).view(x.shape)


def _inverse_root(y: Tensor, shift: Tensor, square: Tensor, triples: list[Triple]) -> Tensor:
    """(Y + shift)^(-1/2), of a Gram matrix `(n, n)` or `(b, n, n)`, by polynomials of Y / square."""
    product = torch.mm if y.ndim == 2 else torch.bmm
    identity = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
    y = (y + identity * shift) / square

    def quintic(gram: Tensor, a: float, b: float, c: float) -> Tensor:
        return torch.add(add_product(gram, gram, gram, beta=b, alpha=c), identity, alpha=a)

    z = step = quintic(y, *triples[0])
    for triple in triples[1:]:
        y = product(y, step)
        step = quintic(product(z, y), *triple)
        z = product(step, z)
    return z * square.rsqrt()


def _trace(y: Tensor) -> Tensor:
    return y.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None].clamp_min(1e-14)


def _rounding(trace: Tensor) -> Tensor:
    """What a Gram matrix must be shifted by: rounding can make a zero eigenvalue negative, and the polynomials would
    drive it to minus infinity. Products of float32 were seen to err by less than one eps of the trace."""
    return 4 * torch.finfo(trace.dtype).eps * trace


def soft_clip(a: Tensor, threshold: float) -> Tensor:
    """a `(*b, m, n)` with its singular values s replaced by s / sqrt(1 + s^2 / threshold^2), all below the threshold.

    c (a a^H + c^2)^(-1/2) a, c the threshold, by products alone: a root of the Gram matrix of the shorter side by the
    polynomials of `orthogonalize`. With c above 1e-2 of a's Schatten-4 norm, singular values come out right to 1e-12 of
    c in float64 and to 5e-5 in float32; at a thousandth of that norm those near c are up to a third too small. Where
    torch multiplies float32 in fewer bits the Gram matrix is one of float64.
    """
    require_matrix(a, "a")
    check_range("threshold", threshold, open_low=True)
    if not a.numel():
        return a.clone()
    x = widen(a)
    x = double(x) if _reduced_products(x.device.type) else x
    factor = _to_unit(x)
    # Beyond the limit nothing is clipped, to rounding; the squares of what is below do not overflow.
    c = (threshold * factor).clamp(max=2.0**40 if is_double(x) else 2.0**20)
    x = x * factor
    tall = not _wide(x)
    x = x.mH if tall else x
    flat = x.reshape(-1, *x.shape[-2:])
    y = torch.bmm(flat, flat.mH)
    shift = torch.maximum(c.square().reshape(-1, 1, 1), _rounding(_trace(y)))
    square = torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True) + shift * y.shape[-1] ** 0.5
    root = _inverse_root(y, shift, square, _triples("polar_express", 8))
    u = torch.bmm(root, flat).reshape(x.shape) * (c / factor)
    return (u.mH if tall else u).to(a.dtype)


# Both. ----------------------------------------------------------------------------------------------------------------


def _wide(x: Tensor) -> bool:
    return x.shape[-2] < x.shape[-1]


def _unit_scale(x: Tensor) -> Tensor:
    """x times the power of two that brings its largest entry to [1/2, 1), so that no square under- or overflows."""
    return x * _to_unit(x)


def _to_unit(x: Tensor) -> Tensor:
    """That power of two, `(*b, 1, 1)`."""
    exponent = torch.frexp(x.detach().abs().amax((-2, -1), keepdim=True)).exponent
    limit = -round(math.log2(torch.finfo(x.dtype).tiny))
    return torch.exp2(-exponent.clamp(-limit, limit).to(x.real.dtype))
