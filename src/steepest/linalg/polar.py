"""The polar factor U V^H of a matrix U S V^H: exactly, or at the grade that Muon needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steepest.linalg.autograd import Rule
from steepest.linalg.eigen import eigh, svd
from steepest.linalg.lyapunov import lyapunov_by_eigenvectors
from steepest.linalg.precision import double, is_double, widen
from steepest.linalg.products import add_product
from steepest.linalg.shapes import require_matrix
from steepest.linalg.symmetric import sym

Triple = tuple[float, float, float]

# Minimax polynomials for singular values in [1e-3, 1], from the authors' listing.
_POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115951549, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
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

`polar_express`: Amsel, Persson, Musco and Gower, 2025, arXiv 2505.16932. `keller_jordan`: Jordan et al., 2024, Muon.
`quintic`: as in dion, HeavyBall and optax, closest to 1 for singular values above 1e-2.
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
    steps: int = 5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Polar factor of a `(*b, m, n)` at Muon's grade: odd polynomials of a / |a|_F, products of matrices only.

    Five steps of `polar_express` take a singular value s of a / |a|_F to within 0.15 of 1 for s >= 2e-3, eight steps to
    within 0.001 for s >= 1e-3; smaller ones, less far up; zero stays zero. Entries may have any scale.

    schedule: a name in `SCHEDULES`, or triples (a, b, c); beyond their end the last repeats.
    dtype: what the products run in. None: float32 (float64 for float64), and where one side is twice shorter and that
        is precise enough, the iteration runs on the small Gram matrix instead, about twice as fast.
        torch.bfloat16: Muon's own choice, with `keller_jordan` the very bits of `torch.optim.Muon`. A complex a takes
        the complex dtype of that precision, complex64 at least.
    """
    require_matrix(a, "a")
    triples = _triples(schedule, steps)
    if not a.numel():
        return a.clone()
    x = _unit_scale(widen(a))
    tall = not _wide(x) and x.shape[-2] != x.shape[-1]
    x = x.mH if tall else x
    in_gram_space = dtype is None and _gram_pays(x, len(triples))
    if dtype is not None:
        x = x.to(torch.promote_types(dtype, torch.complex64) if x.is_complex() else dtype)
    u = _in_gram_space(x, triples) if in_gram_space else _in_full(x, triples)
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


def _in_full(x: Tensor, triples: list[Triple]) -> Tensor:
    """The polynomials on the wide x itself, in its dtype, operation by operation as in torch.optim.Muon."""
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for a, b, c in triples:
        gram = x @ x.mH
        update = add_product(gram, gram, gram, beta=b, alpha=c)
        x = add_product(x, update, x, beta=a)
    return x


def _gram_pays(x: Tensor, steps: int) -> bool:
    """Whether the wide x `(*b, m, n)` is iterated on faster, and as well, through its Gram matrix.

    A Gram matrix squares the condition number: in float32 it holds singular values down to 1e-3 |x|_F. That is all that
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


def _in_gram_space(x: Tensor, triples: list[Triple]) -> Tensor:
    """The same polynomials as x -> Z x, with Z and Y small and Z Y the Gram matrix of the iterate."""
    flat = x.flatten(0, -3) if x.ndim > 3 else x
    product = torch.mm if flat.ndim == 2 else torch.bmm  # on small matrices `@` costs twice as much
    y = product(flat, flat.mH)
    trace = y.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None].clamp_min(1e-14)
    identity = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
    # Rounding can make a zero eigenvalue negative, and the polynomials would then drive it to minus infinity. Products
    # of float32 were seen to err by less than one eps of the trace.
    y = torch.add(y / trace, identity, alpha=4 * torch.finfo(y.dtype).eps)

    def quintic(gram: Tensor, a: float, b: float, c: float) -> Tensor:
        return torch.add(add_product(gram, gram, gram, beta=b, alpha=c), identity, alpha=a)

    z = step = quintic(y, *triples[0])
    for triple in triples[1:]:
        y = product(y, step)
        step = quintic(product(z, y), *triple)
        z = product(step, z)
    return product(z * trace.rsqrt(), flat).view(x.shape)


# Both. ----------------------------------------------------------------------------------------------------------------


def _wide(x: Tensor) -> bool:
    return x.shape[-2] < x.shape[-1]


def _unit_scale(x: Tensor) -> Tensor:
    """x times the power of two that brings its largest entry to [1/2, 1), so that no square under- or overflows."""
    exponent = torch.frexp(x.detach().abs().amax((-2, -1), keepdim=True)).exponent
    limit = -round(math.log2(torch.finfo(x.dtype).tiny))
    return x * torch.exp2(-exponent.clamp(-limit, limit).to(x.real.dtype))
