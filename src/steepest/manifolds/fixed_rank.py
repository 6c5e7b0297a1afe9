"""Matrices of fixed rank, as a product of two factors."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg import double, triangular_inverse
from steepest.linalg.dispatch import THIN
from steepest.linalg.precision import is_double
from steepest.manifolds.base import Manifold
from steepest.manifolds.flow import flow

Pair = tuple[Tensor, Tensor]


class FixedRankFrame(NamedTuple):
    """The factors and the r x r Cholesky factors of their Gram matrices, these in float64."""

    b: Tensor
    a: Tensor
    la: Tensor
    la_inv: Tensor
    lb: Tensor
    lb_inv: Tensor


@dataclasses.dataclass(frozen=True)
class FixedRank(Manifold):
    """Matrices W = B A of rank r, as pairs of B `(*b, m, r)` and A `(*b, r, n)`: LoRA's two factors are one point.

    (B M, M^-1 A) is the same W for every invertible M, and the metric tr(U_B A A^H V_B^H) + tr(U_A^H B^H B V_A) does
    not see the difference: whatever the scaling of the factors, an optimiser that acts on singular values or linearly
    (SGD, momentum, Muon) makes the same steps of W, and an entrywise one (Adam) does so under diagonal M. With
    La La^H = A A^H and Lb Lb^H = B^H B, `push((B, A), (hB, hA)) = (hB La^-1, Lb^-H hA)`.

    LoRA starts from B = 0, where that metric is degenerate: a zero factor counts as orthonormal, so that the other
    one's gradient, zero there, moves nothing. Within a factor, a direction that is dependent on the ones before it, up
    to the precision of its entries, is left out until it has grown: it would be divided by rounding errors.

    While W is small its row space is as good as unknown, and the metric lets A turn by any angle in one step: from
    B = 0 the first few batches would choose it. `turn` bounds that, by quantities that are invariant as well.

    Args:
        turn: largest change of W through A in one step, |B dA| / |B A| in the Frobenius norm: about the angle, in
            radians, by which the row space turns. What both factors change together is bounded alike, |dB dA| by `turn`
            times the larger of |B A| and |dB A|: where B is nearly dependent, as when a batch has fewer rows than B has
            columns, dA may be long though B dA is short. None: not bounded. `param_groups` takes 0.03 for LoRA.

    Mishra, Apuroop and Sepulchre 2012 (1211.1550); Tong, Ma and Chi 2021 (2005.08898); Zhang and Pilanci 2024
    (2402.02347). That the r x r algebra is in float64 with so little damping keeps the invariance; see the tests.

    >>> b, a = FixedRank().random_point(((6, 2), (2, 5)))
    >>> torch.linalg.matrix_rank(b @ a).item()
    2
    """

    turn: float | None = None

    arity: ClassVar[int] = 2
    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")

    def __post_init__(self) -> None:
        if self.turn is not None:
            check_range("turn", self.turn, open_low=True)

    @property
    def blocks(self) -> tuple[str, ...]:
        """One block beside each factor."""
        return ("B", "A")

    def frame(self, x: Pair) -> FixedRankFrame:
        """Gram factors and their inverses; products with the tall factors come last, one for each."""
        b, a = x
        (la, lb), (la_inv, lb_inv) = gram_factors(a.mH, b)
        return FixedRankFrame(b, a, la, la_inv, lb, lb_inv)

    def _push(self, f: FixedRankFrame, h: Pair) -> Pair:
        return times(h[0], f.la_inv), f.lb_inv.mH.to(h[1].dtype) @ h[1]

    def _pull(self, f: FixedRankFrame, g: Pair) -> Pair:
        return times(g[0], f.la_inv.mH), f.lb_inv.to(g[1].dtype) @ g[1]

    def _coords(self, f: FixedRankFrame, v: Pair) -> Pair:
        return times(v[0], f.la), f.lb.mH.to(v[1].dtype) @ v[1]

    def _leave(self, f: FixedRankFrame) -> FixedRankFrame:
        return f._replace(b=f.b[..., :0, :], a=f.a[..., :0])  # without the tall factors

    def _carry(self, f: FixedRankFrame, to: FixedRankFrame, h: Pair) -> Pair:
        # Through the tangent vector, so that momentum keeps the invariance; the two r x r matrices first.
        return times(h[0], f.la_inv @ to.la), (to.lb.mH @ f.lb_inv.mH).to(h[1].dtype) @ h[1]

    def _move(self, f: FixedRankFrame, h: Pair) -> Pair:
        vb, va = self._push(f, h)
        if self.turn is not None:
            va = va * (self.turn * self._room(f, h, vb, va)).clamp_max(1).to(va.dtype)
        return f.b + vb, f.a + va

    def _room(self, f: FixedRankFrame, h: Pair, vb: Tensor, va: Tensor) -> Tensor:
        """The smaller of |B A| / |B dA| and max(|B A|, |dB A|) / |dB dA|: all norms in r x r."""
        tiny = torch.finfo(va.dtype).tiny
        ba = torch.linalg.matrix_norm(f.lb.mH @ f.la, keepdim=True)  # |B A|
        dba, bda = (torch.linalg.matrix_norm(c, keepdim=True) for c in h)  # |dB A|, |B dA|
        squared = ((vb.mH @ vb) * (va @ va.mH).mT).real.sum((-2, -1), keepdim=True)  # |dB dA|
        return torch.minimum(ba / bda.clamp_min(tiny), torch.maximum(ba, dba) / squared.clamp_min(tiny).sqrt())

    def horizontal(self, x: Pair, v: Pair) -> Pair:
        """v without its part along (B N, -N A), which does not change W: the shortest v with the same dW = dB A + B dA.
        Gradients of functions of W are horizontal, and along such v `exp` is a geodesic of matrices."""
        f = self.frame(x)
        return self._push(f, self._horizontal(f, self._coords(f, v)))

    def _horizontal(self, f: FixedRankFrame, h: Pair) -> Pair:
        # With orthonormal Qb = B Lb^-H and Qa = La^-1 A, h is horizontal where Qb^H hB = hA Qa^H.
        qb, qa = f.b @ f.lb_inv.mH.to(f.b.dtype), f.la_inv.to(f.a.dtype) @ f.a
        n = (qb.mH @ h[0] - h[1] @ qa.mH) / 2
        return h[0] - qb @ n, h[1] + n @ qa

    def _decay(self, f: FixedRankFrame, h: Pair, rate: float) -> Pair:
        b, a = self._coords(f, (f.b, f.a))
        return h[0] + rate / 2 * b, h[1] + rate / 2 * a  # half in each factor: d(B A) = B A

    def exp(self, x: Pair, v: Pair) -> Pair:
        """End of the geodesic of pairs that leaves x with velocity v; for a horizontal v it is one of the matrices B A.

        By integration of the Euler-Lagrange equations of |B' La|^2 + |Lb^H A'|^2,

            B'' = (B A' A'^H - B' G') G^-1 with G = A A^H,    A'' = K^-1 (B'^H B' A - K' A') with K = B^H B.

        NaN where a factor loses rank on the way.
        """

        def field(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            b, a, db, da = state
            across, along = da @ a.mH, db.mH @ b
            ddb = _solve(a @ a.mH, (b @ (da @ da.mH) - db @ (across + across.mH)).mH).mH
            dda = _solve(b.mH @ b, (db.mH @ db) @ a - (along + along.mH) @ da)
            return db, da, ddb, dda

        b, a, _, _ = flow(field, (*x, *v))
        return b, a

    def represent(self, x: Pair) -> Tensor:
        """W = B A, `(*b, m, n)`."""
        return x[0] @ x[1]

    def project(self, x: Pair) -> Pair:
        """x itself: every pair is a point, or a limit of points where a factor has lost rank."""
        return x

    def residual(self, x: Pair) -> Tensor:
        """Zero; NaN where an entry is not finite."""
        return ((x[0] * 0).sum((-2, -1)) + (x[1] * 0).sum((-2, -1))).abs()

    def random_point(self, shape: tuple[Any, Any], *, generator: Any = None, **kwargs: Any) -> Pair:
        """Gaussian factors, scaled so that the entries of W have variance one."""
        b, a = (torch.randn(s, generator=generator, **kwargs) for s in shape)
        return b / shape[1][-2] ** 0.25, a / shape[1][-2] ** 0.25

    def shape_error(self, x: Pair) -> str:
        """A pair that multiplies, of rank at most its sides."""
        b, a = (tuple(t.shape) for t in x)
        if len(b) < 2 or len(a) < 2 or b[-1] != a[-2] or b[:-2] != a[:-2]:
            return f"B of shape {b} and A of shape {a} do not multiply to W = B A: expected (..., m, r) and (..., r, n)"
        if b[-1] > min(b[-2], a[-1]):
            return f"rank r = {b[-1]} exceeds a side of W, {b[-2]} x {a[-1]}: expected r <= min(m, n)"
        return ""

    def dim(self, shape: Any, scalars: str = "real") -> int:
        """(m + n - r) r, of the matrices B A; the pairs have r^2 more. Of complex ones twice that."""
        (m, r), (_, n) = (s[-2:] for s in shape)
        return int((m + n - r) * r) * (2 if scalars == "complex" else 1)

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Low rank, rank one, full rank; the turn bounded."""
        return [
            (cls(turn=0.1), ((6, 2), (2, 5))),
            (cls(), ((6, 2), (2, 5))),
            (cls(), ((4, 1), (1, 3))),
            (cls(), ((2, 2), (2, 4))),
        ]


def _solve(gram: Tensor, y: Tensor) -> Tensor:
    """gram^-1 y for a positive definite gram; not a number where it is not."""
    lower, _ = torch.linalg.cholesky_ex(gram)
    return torch.cholesky_solve(y, lower)


def times(h: Tensor, s: Tensor) -> Tensor:
    """h s, for a tall h `(*b, m, r)` and an r x r s, in the dtype of h. With few columns as (s^T h^T)^T: long rows
    are multiplied, and kept, several times faster than short ones."""
    s = s.to(h.dtype)
    return (s.mT @ h.mT).mT if s.shape[-1] <= THIN else h @ s


def gram_factor(b: Tensor) -> tuple[Tensor, Tensor]:
    """L lower triangular with L L^H = B^H B, and its inverse, for B `(*b, m, r)`: `gram_factors` of one."""
    (lower,), (inverse,) = gram_factors(b)
    return lower, inverse


def gram_factors(*factors: Tensor) -> tuple[Tensor, Tensor]:
    """L lower triangular with L L^H = B^H B, and its inverse, for each B `(*b, m, r)`; both stacked `(k, *b, r, r)`, in
    float64 (complex128).

    The damping follows the precision of B's entries: (16 eps)^2 relative to the trace. A Gram matrix in float64 cannot
    hold that for float64 entries, so there the factor of B L^-H, nearly orthonormal, refines the first (CholeskyQR2).
    Rows of the inverse that belong to dependent directions are zero.
    """
    eps = max(torch.finfo(factors[0].dtype).eps, 0.0 if is_double(factors[0]) else torch.finfo(torch.float32).eps)
    refine, r = eps <= 1e-10, factors[0].shape[-1]
    damping = (4 * r * eps if refine else 16 * eps) ** 2
    wide = [double(b) for b in factors]
    gram = torch.stack([b.mH @ b for b in wide])
    trace = gram.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None]
    zero = trace == 0
    eye = torch.eye(r, dtype=gram.dtype, device=gram.device)
    lower = torch.linalg.cholesky_ex(gram + torch.where(zero, 1, (4 * r * eps if refine else damping) * trace) * eye).L
    inverse = triangular_inverse(lower)
    if refine:
        white = [b @ inv.mH for b, inv in zip(wide, inverse.unbind(0), strict=True)]
        gram = torch.stack([q.mH @ q for q in white])
        second = torch.linalg.cholesky_ex(torch.where(zero, eye, gram + 4 * r * eps * eye)).L
        lower, inverse = lower @ second, triangular_inverse(second) @ inverse
    pivot = lower.diagonal(dim1=-2, dim2=-1).real.unsqueeze(-1)
    return lower, torch.where(zero | (pivot**2 > 16 * damping * trace), inverse, 0.0)
