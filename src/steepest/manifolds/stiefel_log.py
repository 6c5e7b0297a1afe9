"""Logarithm on Stiefel: Newton's method with the exact derivative of the exponential map, in size 2p instead of n.

The span of X and Y holds a shortest geodesic between them: with the QR factorisation [X Y] = Q R it is Q times one in
k x p, k = min(n, 2p), from [I; 0] to the right half of R. There, with orthonormal coordinates h = [A; B], A skew,

    exp(h) = expm(G) [I; 0] expm((c - 2/c) A),    G = [[(2/c) A, -B^H], [B, 0]],

and in the eigenbases of the two skew matrices the derivative of exp and its adjoint cost a few products each.

Iterations without that derivative (Zimmermann 2017, 1604.05054; the shooting of Zimmermann and Hueper 2022, 2103.12046)
converge linearly, and shooting, when tried here, often not at all from half of the injectivity radius on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.linalg import double, qr, skew
from steepest.manifolds.implicit import ConvergenceWarning
from steepest.manifolds.tensors import bcast

Pair = tuple[Tensor, Tensor]

ITERATIONS = 30
"""Newton's steps from one start, those refused among them."""
RESTARTS = 16
"""Further attempts, for an element that comes to rest away from its target."""
STAGES = 24
"""Metrics on the way from the Euclidean one, in a further attempt."""
STEP = 2.0
"""Length of the longest step."""
CLOSE = 3e-8
"""Gap from which one more step of Newton's method reaches rounding."""


def stiefel_log(x: Tensor, y: Tensor, c: float, exp: Callable[[Pair], Tensor]) -> Pair:
    """Coordinates (A, Z) at x of a tangent vector whose exponential is y, for x and y `(*b, n, p)`, n > p, with their
    first two derivatives. NaN, with a warning, where none is found.

    Args:
        x: where the tangent vector is.
        y: where it leads.
        c: the scale of the skew block.
        exp: the exponential at x of the tangent vector with the coordinates that it is given, for the derivatives.

    Newton's method starts at zero and so follows a short path: each step leads towards y as seen from where the
    geodesic at hand ends, and is halved until it comes nearer. CGLS solves for it, to the accuracy that the gap
    warrants. All is computed in float64, and in float64 the result is exact to rounding.
    """
    batch, (n, p) = x.shape[:-2], x.shape[-2:]
    with torch.no_grad():
        both = torch.cat([double(x), double(y)], -1).reshape(-1, n, 2 * p)
        finite = both.isfinite().flatten(1).all(1)
        q, r = qr(torch.where(bcast(finite, 2), both, torch.eye(n, 2 * p, dtype=both.dtype, device=both.device)))
        h, found = _search(_mended(r[..., p:]), c)
        found = found & finite
        _warn_unless(found)
        h, q = torch.where(bcast(found, 2), h, 0), q[..., p:]
        a, z = h[:, :p].to(x.dtype).reshape(*batch, p, p), (q @ h[:, p:]).to(x.dtype).reshape(x.shape)
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        inverse = _Inverse(double(x.detach()).reshape(-1, n, p), q, _Geodesic(h, c))
        for _ in range(2):  # the chord method, as in `implicit.with_derivatives`
            da, dz = _Solve.apply(exp((a, z)) - y, inverse)
            a, z = a - da, z - dz
    found = bcast(found.reshape(batch), 2)
    return torch.where(found, a, torch.nan), torch.where(found, z, torch.nan)


def _warn_unless(found: Tensor) -> None:
    if not found.all():
        warnings.warn(
            f"log: {int((~found).sum())} of {found.numel()} geodesics were not found; the points may be too far apart. "
            "The result is NaN there.",
            ConvergenceWarning,
            stacklevel=4,
        )


def _mended(y: Tensor) -> Tensor:
    """y with columns orthonormal to rounding, where they are so to the precision of an input: three Newton-Schulz
    steps."""
    for _ in range(3):
        y = 1.5 * y - 0.5 * y @ (y.mH @ y)
    return y


# The search. ----------------------------------------------------------------------------------------------------------


def _search(target: Tensor, c: float) -> Pair:
    """h with exp(h) == target `(b, k, p)`, and whether it was found `(b,)`.

    From the tangent part of the gap; where that leads nowhere, from the Euclidean geodesic, which is easy to find, and
    through the metrics between; where that fails too, the same from random changes of the start.
    """
    k, p = target.shape[-2:]
    turn, tilt = skew(target[:, :p]), target[:, p:]
    gap = target - torch.eye(k, p, dtype=target.dtype, device=target.device)
    start = _step(torch.cat([turn / c, tilt], -2), gap, torch.cat([turn, tilt], -2))
    h, found = _newton(target, start, c)
    generator = torch.Generator().manual_seed(0)
    for attempt in range(RESTARTS):
        lost = (~found).nonzero().squeeze(1)
        if not lost.numel():
            break
        other = start[lost]
        if attempt:
            noise = torch.randn(other.shape, generator=generator, dtype=other.dtype).to(other.device)
            noise = torch.cat([skew(noise[:, :p]), noise[:, p:]], -2)
            other = other + bcast(_size(gap[lost]) / _size(noise), 2) * noise
        h[lost], found[lost] = _continued(target[lost], other, c)
    return h, found


def _continued(target: Tensor, start: Tensor, c: float) -> Pair:
    """As `_newton`, through metrics whose scale runs from 1 to c."""
    p, rise = target.shape[-1], c ** (1 / STAGES)
    h, found = _newton(target, start, 1.0)
    for stage in range(1, STAGES + 1):
        h, found = _newton(target, torch.cat([h[:, :p] / rise, h[:, p:]], -2), rise**stage)
    return h, found


def _newton(target: Tensor, start: Tensor, c: float) -> Pair:
    """The h that Newton's method finds for exp(h) == target after its first step, from zero to `start`; and whether it
    has converged."""
    h, d = torch.zeros_like(start), start.clone()
    gap = torch.full(target.shape[:1], torch.inf, dtype=target.real.dtype, device=target.device)
    rate, found = torch.ones_like(gap), torch.zeros_like(gap, dtype=torch.bool)
    for _ in range(ITERATIONS):
        i = (~found & (rate > 1e-3)).nonzero().squeeze(1)
        if not i.numel():
            break
        trial = h[i] + bcast(rate[i], 2) * d[i]
        g = _Geodesic(trial, c)
        w = target[i] - g.end
        size = _size(w)
        # the gap left is the square of this one, or the product with the tolerance
        step = _least_squares(g.forth, g.back, w, torch.maximum(size.clamp(CLOSE, 0.1), 1e-16 / size), 100)
        better, close = size < gap[i], size <= CLOSE
        h[i] = torch.where(bcast(better, 2), trial + bcast(close, 2) * step, h[i])
        d[i] = torch.where(bcast(better, 2), _step(step, w, g.forth(step)), d[i])
        gap[i], rate[i], found[i] = torch.minimum(size, gap[i]), torch.where(better, 1, rate[i] / 2), close
    return h, found


def _step(d: Tensor, gap: Tensor, moved: Tensor) -> Tensor:
    """The direction d, which moves the end by `moved`, the tangent part of the gap: made as long as the whole gap,
    which is nearer to the distance, but at most `STEP` long."""
    whole, part = _size(gap), _size(moved)
    longer = torch.where(part > 0, whole / part, 1).clamp(1, 4)
    return bcast(torch.minimum(longer, STEP / _size(d)), 2) * d


def _least_squares(
    forth: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], b: Tensor, tolerance: Tensor | float, most: int
) -> Tensor:
    """`linalg.least_squares` for matrices of one shape and a map without small singular values: half the time, which on
    small matrices is that of calling torch."""
    s = p = back(b)
    x, size = torch.zeros_like(s), _size(s)
    goal = torch.maximum(tolerance * size, 4 * torch.finfo(b.dtype).eps * _size(b))  # below is rounding
    active = size > goal
    for _ in range(most):
        if not active.any():
            break
        jp = forth(p)
        t = bcast(torch.where(active, size / _size(jp), 0).square(), 2)
        x, b = x + t * p, b - t * jp
        s, before = back(b), size
        size = _size(s)
        p = s + bcast(torch.where(active, size / before, 0).square(), 2) * p
        active = active & (size > goal)
    return x


def _size(h: Tensor) -> Tensor:
    """Frobenius norm of each element of the batch, `(b,)`."""
    return torch.linalg.matrix_norm(h)


class _Geodesic:
    """The geodesic from [I; 0] with velocity h `(b, k, p)`: its end at time one, and the derivative of that.

    Adjoints are kept beside what they are of: on small matrices to make them is as dear as a product.
    """

    def __init__(self, h: Tensor, c: float) -> None:
        p, m = h.shape[-1], h.shape[-2] - h.shape[-1]
        a, low = h[:, :p], h[:, p:]
        right = torch.cat([-low.mH, low.new_zeros(*low.shape[:-1], m)], -2)
        self.w, self.u = torch.linalg.eigh(-1j * torch.cat([torch.cat([2 / c * a, low], -2), right], -1))
        self.p, self.real, self.dtype = p, not h.is_complex(), self.u.dtype
        self.top, self.scaled = self.u[:, :p], torch.cat([self.u[:, :p] / c, self.u[:, p:]], -2)
        self.u_adjoint, self.scaled_adjoint = _adjoint(self.u), _adjoint(self.scaled)
        self.top_adjoint = self.exit = _adjoint(self.top)
        self.end = self.rise = self._part((self.u * torch.exp(1j * self.w).unsqueeze(-2)) @ self.exit)
        self.slope, self.rate = _differences(self.w), c - 2 / c
        self.slope_adjoint = _conjugate(self.slope)
        self.twisted = abs(self.rate) > 1e-12
        if self.twisted:
            s, self.v = torch.linalg.eigh(-1j * a)
            self.v_adjoint, self.rise_adjoint = _adjoint(self.v), _adjoint(self.rise)
            turn = self._part((self.v * torch.exp(1j * self.rate * s).unsqueeze(-2)) @ self.v_adjoint)
            self.turn_slope = self.rate * _differences(self.rate * s)
            self.turn_slope_adjoint = _conjugate(self.turn_slope)
            self.end, self.exit = self.rise @ turn, self.exit @ turn.to(self.dtype)
        self.exit_adjoint = _adjoint(self.exit)

    def _part(self, z: Tensor) -> Tensor:
        return z.real if self.real else z

    def forth(self, h: Tensor) -> Tensor:
        """Derivative of the end along h, the upper block of which is skew."""
        z = h.to(self.dtype)
        inner = torch.bmm(self.scaled_adjoint, torch.bmm(z, self.top))
        inner = torch.bmm(self.slope * (inner - inner.mH), self.exit)
        out = self._part(torch.bmm(self.u, inner))
        if self.twisted:
            turn = _sandwich(self.v_adjoint, z[:, : self.p], self.v)
            turn = self._part(_sandwich(self.v, self.turn_slope * turn, self.v_adjoint))
            out = torch.baddbmm(out, self.rise, turn)
        return out

    def back(self, w: Tensor) -> Tensor:
        """Adjoint of `forth`."""
        inner = self.slope_adjoint * _sandwich(self.u_adjoint, w.to(self.dtype), self.exit_adjoint)
        h = self._part(_sandwich(self.scaled, inner - inner.mH, self.top_adjoint))
        if self.twisted:
            turn = _sandwich(self.v_adjoint, torch.bmm(self.rise_adjoint, w).to(self.dtype), self.v)
            turn = skew(self._part(_sandwich(self.v, self.turn_slope_adjoint * turn, self.v_adjoint)))
            h = torch.cat([h[:, : self.p] + turn, h[:, self.p :]], -2)
        return h

    def spread(self) -> Tensor:
        """The p x p matrix T by which the end moves, K T, when the velocity moves by K out of the span."""
        phi = torch.exp(0.5j * self.w) * torch.sinc(self.w / (2 * math.pi))  # (exp(i w) - 1) / (i w)
        return self._part((self.top * phi.unsqueeze(-2)) @ self.exit)


def _sandwich(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.bmm(a, torch.bmm(b, c))


def _adjoint(a: Tensor) -> Tensor:
    return _conjugate(a.mT).contiguous()


def _conjugate(a: Tensor) -> Tensor:
    return a.conj().resolve_conj()


def _differences(w: Tensor) -> Tensor:
    """Divided differences of exp at the imaginary numbers i w."""
    a, b = w.unsqueeze(-1), w.unsqueeze(-2)
    return torch.exp(0.5j * (a + b)) * torch.sinc((a - b) / (2 * math.pi))


# Derivatives. ---------------------------------------------------------------------------------------------------------


class _Inverse:
    """The pseudoinverse of the derivative of the exponential at x, from n x p to coordinates, and its adjoint.

    Within the span of the points it is that of the small problem; out of it, a p x p matrix on the right.
    """

    def __init__(self, x: Tensor, q: Tensor, g: _Geodesic) -> None:
        self.basis, self.g, self.p = torch.cat([x, q], -1), g, x.shape[-1]
        self.gather = torch.linalg.inv(g.spread())

    def solve(self, w: Tensor) -> Pair:
        v = self._flat(w)
        inside = self.basis.mH @ v
        h = _least_squares(self.g.forth, self.g.back, inside, TIGHT, 500)
        z = self.basis[..., self.p :] @ h[:, self.p :] + (v - self.basis @ inside) @ self.gather
        return h[:, : self.p].to(w.dtype).reshape(*w.shape[:-2], self.p, self.p), z.to(w.dtype).reshape(w.shape)

    def adjoint(self, a: Tensor, z: Tensor) -> Tensor:
        u = self._flat(z)
        inside = self.basis.mH @ u
        h = torch.cat([skew(self._flat(a)), inside[:, self.p :]], -2)
        w = _least_squares(self.g.back, self.g.forth, h, TIGHT, 500)
        return (self.basis @ w + (u - self.basis @ inside) @ self.gather.mH).to(z.dtype).reshape(z.shape)

    def _flat(self, w: Tensor) -> Tensor:
        return double(w).reshape(-1, *w.shape[-2:])


TIGHT = 1e-14
"""Relative residual of the systems solved for derivatives."""


class _Solve(torch.autograd.Function):
    """`_Inverse.solve`, the derivative of which is its adjoint."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, inverse: _Inverse) -> Any:
        ctx.inverse = inverse
        return inverse.solve(w)

    @staticmethod
    def backward(ctx: Any, a: Tensor, z: Tensor) -> Any:
        return _Adjoint.apply(a, z, ctx.inverse), None


class _Adjoint(torch.autograd.Function):
    """`_Inverse.adjoint`, the derivative of which is `_Inverse.solve`."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, z: Tensor, inverse: _Inverse) -> Tensor:
        ctx.inverse = inverse
        return inverse.adjoint(a, z)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> Any:
        return *_Solve.apply(w, ctx.inverse), None
