"""Matrices of fixed rank with the metric of the space around them."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from steepest.linalg import double, polar, qr, sym_sqrt
from steepest.manifolds.base import Manifold
from steepest.manifolds.fixed_rank import Pair, gram_factors
from steepest.manifolds.flow import flow

Triple = tuple[Tensor, Tensor, Tensor]

RETRACTIONS = ("splitting", "projection")
"""How a step comes back to rank r."""


class FixedRankEmbeddedFrame(NamedTuple):
    """The three factors, and S^-1 and S^-H in float64, zero in directions that S has lost."""

    u: Tensor
    s: Tensor
    v: Tensor
    inv: Tensor
    inv_h: Tensor


@dataclasses.dataclass(frozen=True)
class FixedRankEmbedded(Manifold):
    """Matrices W = U S V^H of rank r in R^(m x n) or C^(m x n), as triples of U `(*b, m, r)`, S `(*b, r, r)` and V
    `(*b, n, r)`, with U^H U = V^H V = I and any invertible S.

    (U Q, Q^H S P, V P) is the same W for all unitary Q and P: S need not be diagonal, and so frames are smooth where
    singular values meet. The metric is Re tr(X^H Y) of the matrices W. A tangent vector is U M V^H + Up V^H + U Vp^H
    with U^H Up = 0, V^H Vp = 0, and coordinates are the blocks (Up, M, Vp), one beside each factor:

        push(x, (Up, M, Vp)) = (Up S^-1, M, Vp S^-H),

    after a projection of the first and last block. Optimisers that act on singular values or linearly (SGD, momentum,
    Muon) make the same steps of W whatever the representative. Momentum is carried as the matrix that it stands for,
    projected onto the new tangent space.

    Where W has lost rank, S^-1 leaves out the directions that are lost, as `FixedRank` does; the retraction needs no
    inverse, and crosses such points.

    Args:
        retraction: "splitting" projects W + X onto the columns of (W + X) V and then onto the rows that are left, with
            products and QR of thin matrices alone; of second order, and exact where W + X has rank r. It treats columns
            and rows differently. "projection": the nearest matrix of rank r, by an SVD of 2r x 2r; discontinuous where
            the singular values number r and r + 1 of W + X meet, which a step shorter than half of W's least one does
            not reach.

    Vandereycken 2013 (1209.3834), section 2, for the geometry; Lubich and Oseledets 2014 (1301.1058), section 3.2, for
    the splitting, here in coordinates and with the middle step inside the last; Absil and Oseledets 2015 (Low-rank
    retractions: a survey and new results), section 3, for it and the projection as retractions.

    >>> manifold = FixedRankEmbedded()
    >>> x = manifold.from_factors((torch.randn(6, 2), torch.randn(2, 5)))
    >>> [tuple(t.shape) for t in x], torch.linalg.matrix_rank(manifold.represent(x)).item()
    ([(6, 2), (2, 2), (5, 2)], 2)
    """

    retraction: str = "splitting"

    arity: ClassVar[int] = 3
    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")

    def __post_init__(self) -> None:
        if self.retraction not in RETRACTIONS:
            raise ValueError(f"retraction: unknown {self.retraction!r}, expected one of {', '.join(RETRACTIONS)}")

    @property
    def blocks(self) -> tuple[str, ...]:
        """One block beside each factor: Up, M and Vp."""
        return ("U", "S", "V")

    # Conversion. ------------------------------------------------------------------------------------------------------

    @staticmethod
    def from_factors(x: Pair) -> Triple:
        """The triple (U, S, V) of W = B A, for factors B `(*b, m, r)` and A `(*b, r, n)`: a point of `FixedRank`, or
        LoRA's two matrices, of full rank or not. Inverse: `to_factors`.

        >>> b, a = torch.randn(6, 2), torch.randn(2, 5)
        >>> u, s, v = FixedRankEmbedded.from_factors((b, a))
        >>> bool((u @ s @ v.mT - b @ a).abs().max() < 1e-5)
        True
        """
        (u, left), (v, right) = qr(x[0]), qr(x[1].mH)
        return u, left @ right.mH, v

    @staticmethod
    def to_factors(x: Triple) -> Pair:
        """Balanced factors (B, A) of W = B A, B^H B = A A^H: B = U H^(1/2) and A = H^(1/2) Z V^H, where S = H Z is the
        polar decomposition.

        >>> b, a = FixedRankEmbedded.to_factors(FixedRankEmbedded().random_point(((6, 2), (2, 2), (5, 2))))
        >>> bool((b.mT @ b - a @ a.mT).abs().max() < 1e-4)
        True
        """
        u, s, v = x
        z = polar(s)
        root = sym_sqrt(s @ z.mH)
        return u @ root, root @ z @ v.mH

    @staticmethod
    def from_matrix(w: Tensor, rank: int) -> Triple:
        """The triple (U, S, V) of the matrix of rank at most `rank` nearest to w `(*b, m, n)`, by a truncated SVD
        (Eckart and Young 1936).

        >>> x = FixedRankEmbedded.from_matrix(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2)
        >>> FixedRankEmbedded().represent(x).diagonal().round(decimals=4).tolist()
        [3.0, 2.0, 0.0]
        """
        if w.ndim < 2 or not 1 <= rank <= min(w.shape[-2:]):
            raise ValueError(
                f"rank: got {rank} for w of shape {tuple(w.shape)}, expected 1 <= rank <= min(m, n) for w (..., m, n)"
            )
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        return u[..., :rank], torch.diag_embed(s[..., :rank]).to(w.dtype), vh[..., :rank, :].mH

    # The frame. -------------------------------------------------------------------------------------------------------

    def frame(self, x: Triple) -> FixedRankEmbeddedFrame:
        """The factors, and an inverse of S for each side."""
        u, s, v = x
        return FixedRankEmbeddedFrame(u, s, v, *_right_inverses(s))

    def _push(self, f: FixedRankEmbeddedFrame, h: Triple) -> Triple:
        up, m, vp = self._conform(f, h)
        return up @ f.inv.to(up.dtype), m, vp @ f.inv_h.to(vp.dtype)

    def _pull(self, f: FixedRankEmbeddedFrame, g: Triple) -> Triple:
        return self._conform(f, (g[0] @ f.inv.mH.to(g[0].dtype), g[1], g[2] @ f.inv_h.mH.to(g[2].dtype)))

    def _coords(self, f: FixedRankEmbeddedFrame, v: Triple) -> Triple:
        # Of any tangent vector of the triples, such as one that turns U and V and leaves W: its part dW.
        du, ds, dv = v
        m = ds + (f.u.mH @ du) @ f.s + f.s @ (dv.mH @ f.v)
        return self._conform(f, (du @ f.s, m, dv @ f.s.mH))

    def _conform(self, f: FixedRankEmbeddedFrame, h: Triple) -> Triple:
        return _off(f.u, h[0]), h[1], _off(f.v, h[2])

    def _leave(self, f: FixedRankEmbeddedFrame) -> FixedRankEmbeddedFrame:
        return f._replace(u=f.u.clone(), v=f.v.clone())

    def _carry(self, f: FixedRankEmbeddedFrame, to: FixedRankEmbeddedFrame, h: Triple) -> Triple:
        # X = U M V^H + Up V^H + U Vp^H as a matrix, times the new V and times the new U; r x r products first.
        up, m, vp = self._conform(f, h)  # an entrywise optimiser's momentum has parts that stand for nothing
        turn_u, turn_v = to.u.mH @ f.u, to.v.mH @ f.v
        rows, columns = to.u.mH @ up, to.v.mH @ vp
        xv = f.u @ (m @ turn_v.mH + columns.mH) + up @ turn_v.mH
        xu = f.v @ (m.mH @ turn_u.mH + rows.mH) + vp @ turn_u.mH
        return _off(to.u, xv), to.u.mH @ xv, _off(to.v, xu)

    def _move(self, f: FixedRankEmbeddedFrame, h: Triple) -> Triple:
        h = self._conform(f, h)
        return _split(f, h) if self.retraction == "splitting" else _nearest(f, h)

    def _decay(self, f: FixedRankEmbeddedFrame, h: Triple, rate: float) -> Triple:
        return h[0], h[1] + rate * f.s, h[2]

    def exp(self, x: Triple, v: Triple) -> Triple:
        """End of the geodesic that leaves x with velocity v, by integration of W'' normal to the tangent space:

            U'' = -2 U' S' S^-1 - U U'^H U',    S'' = U'^H U' S + S V'^H V',    V'' = -2 V' (S^-1 S')^H - V V'^H V'.

        NaN where W loses rank on the way.
        """
        u, s, w = x
        turn, twist = u.mH @ v[0], w.mH @ v[2]
        start = v[0] - u @ turn, v[1] + turn @ s + s @ twist.mH, v[2] - w @ twist

        def field(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            u, s, v, du, ds, dv = state
            inverse = _inverse(s)
            left, right = du.mH @ du, dv.mH @ dv
            ddu = -2 * du @ (ds @ inverse) - u @ left
            ddv = -2 * dv @ (inverse @ ds).mH - v @ right
            return du, ds, dv, ddu, left @ s + s @ right, ddv

        u, s, w, *_ = flow(field, (*x, *start))
        return u, s, w

    def hessian(self, x: Triple, g: Triple, gv: Triple, v: Triple) -> Triple:
        """The derivative of the gradient along v, as a matrix, projected onto the tangent space.

        With (U', S', V') the tangent vector that has v's coordinates, which turns neither U nor V within itself, and
        the gradient's blocks (A, M, B), A = (I - U U^H) G_U S^-H and B = (I - V V^H) G_V S^-1, those of the result are

            U' M + A',    M' - U'^H A - B^H V',    V' M^H + B',

        the outer ones without their parts in U and V. What v turns besides has turned the Euclidean gradient too.
        """
        f = self.frame(x)
        du, ds, dv = self._push(f, self._coords(f, v))
        up, m, vp = self._pull(f, g)
        turn, twist = f.u.mH @ v[0], f.v.mH @ v[2]
        inv, inv_h = f.inv.to(m.dtype), f.inv_h.to(m.dtype)
        left = gv[0] - g[0] @ turn - du @ (f.u.mH @ g[0]) - up @ ds.mH
        right = gv[2] - g[2] @ twist - dv @ (f.v.mH @ g[2]) - vp @ ds
        middle = gv[1] + turn @ m - m @ twist - du.mH @ up - vp.mH @ dv
        return self._push(f, (du @ m + left @ inv.mH, middle, dv @ m.mH + right @ inv_h.mH))

    # Points. ----------------------------------------------------------------------------------------------------------

    def represent(self, x: Triple) -> Tensor:
        """W = U S V^H, `(*b, m, n)`."""
        u, s, v = x
        return u @ s @ v.mH

    def project(self, x: Triple) -> Triple:
        """The same W, with the triangular factors of U and V moved into S."""
        (u, left), (v, right) = qr(x[0]), qr(x[2])
        return u, left @ x[1] @ right.mH, v

    def residual(self, x: Triple) -> Tensor:
        """Largest entry of `|U^H U - I|` and `|V^H V - I|`; NaN where an entry of S is not finite. S without full rank
        is a limit of points, and counts as one."""
        return torch.maximum(orthonormality(x[0]), orthonormality(x[2])) + (x[1] * 0).sum((-2, -1)).abs()

    def random_point(self, shape: tuple[Any, Any, Any], *, generator: Any = None, **kwargs: Any) -> Triple:
        """Uniform row and column spaces, and entries of W with a variance of about one: singular values lie between a
        half and three halves of (m n / r)^(1/2)."""
        u, s, v = (torch.randn(size, generator=generator, **kwargs) for size in shape)
        (m, r), n = shape[0][-2:], shape[2][-2]
        return polar(u), (polar(s) + s / r**0.5) * ((m * n / r) ** 0.5 / 2), polar(v)

    def shape_error(self, x: Triple) -> str:
        """Three factors that multiply, of rank at most the sides of W."""
        u, s, v = (tuple(t.shape) for t in x)
        fits = min(len(u), len(s), len(v)) >= 2 and u[-1] == s[-2] == s[-1] == v[-1] and u[:-2] == s[:-2] == v[:-2]
        if not fits:
            return (
                f"U of shape {u}, S of shape {s} and V of shape {v} do not multiply to W = U S V^H: expected "
                "(..., m, r), (..., r, r) and (..., n, r)"
            )
        if u[-1] > min(u[-2], v[-2]):
            return f"rank r = {u[-1]} exceeds a side of W, {u[-2]} x {v[-2]}: expected r <= min(m, n)"
        return ""

    def dim(self, shape: Any, scalars: str = "real") -> int:
        """(m + n - r) r; of complex matrices twice that."""
        (m, r), _, (n, _) = (s[-2:] for s in shape)
        return int((m + n - r) * r) * (2 if scalars == "complex" else 1)

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Low rank, rank one, full rank of a wide matrix, a single number; both retractions."""
        return [
            (cls(), ((5, 2), (2, 2), (4, 2))),
            (cls("projection"), ((3, 2), (2, 2), (3, 2))),
            (cls(), ((3, 1), (1, 1), (2, 1))),
            (cls(), ((2, 2), (2, 2), (3, 2))),
            (cls(), ((1, 1), (1, 1), (1, 1))),
        ]


def _off(u: Tensor, z: Tensor) -> Tensor:
    """z without its part in the span of u."""
    return z - u @ (u.mH @ z)


def _right_inverses(s: Tensor) -> tuple[Tensor, Tensor]:
    """S^-1 = S^H L^-H L^-1 with L L^H = S S^H, in float64, and likewise (S^H)^-1. S S^-1 is I to eps times the
    condition number of S, where S^-1 S would lose its square."""
    _, (left, right) = gram_factors(s.mH, s)
    return (left @ double(s)).mH @ left, (right @ double(s.mH)).mH @ right


def _inverse(s: Tensor) -> Tensor:
    """S^-1 by QR; not finite where S is singular."""
    q, r = torch.linalg.qr(s)
    return torch.linalg.solve_triangular(r, q.mH, upper=True)


def orthonormality(u: Tensor) -> Tensor:
    """Largest entry of `|U^H U - I|`, `(*b,)`."""
    eye = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    return (u.mH @ u - eye).abs().amax((-2, -1))


def aligned_basis(k: Tensor, u: Tensor) -> Tensor:
    """An orthonormal basis Q of the span of k `(*b, m, r)`, with Q^H U upper triangular with a positive diagonal.

    At k = U R it is U itself, and along any path from there its derivative is orthogonal to U. Of a k without full rank
    it completes the span.
    """
    q, _ = qr(k)
    turn, _ = qr(q.mH @ u)
    return q @ turn


def _split(f: FixedRankEmbeddedFrame, h: Triple) -> Triple:
    """With Z = W + X: U' spans Z V, V' spans Z^H U', and S' = U'^H Z V'."""
    up, m, vp = h
    zv = f.u @ (f.s + m) + up
    u = aligned_basis(zv, f.u)
    zu = f.v @ (u.mH @ zv).mH + vp @ (f.u.mH @ u)
    v = aligned_basis(zu, f.v)
    return u, zu.mH @ v, v


def _nearest(f: FixedRankEmbeddedFrame, h: Triple) -> Triple:
    """The leading singular subspaces of Z = W + X = (U (S + M) + Up) V^H + U Vp^H."""
    up, m, vp = h
    left, right = torch.cat([f.u @ (f.s + m) + up, f.u], -1), torch.cat([f.v, vp], -1)
    u = aligned_basis(_leading(left, right, f.u.shape[-1]), f.u)
    zu = right @ (left.mH @ u)
    v = aligned_basis(zu, f.v)
    return u, zu.mH @ v, v


def _leading(left: Tensor, right: Tensor, rank: int) -> Tensor:
    """A basis of the leading left singular subspace of Z = left right^H, with two derivatives, which exist where the
    singular values number r and r + 1 differ.

    With orthonormal Q1 and Q2 for the leading and the other singular vectors, the basis is Q1 + E, where E solves
    Z Z^H (Q1 + E) = (Q1 + E) G with G = Q1^H Z Z^H (Q1 + E). E is zero; two steps of the chord method, constant but for
    the dependence on Z, attach its derivatives.
    """
    (q, x), (_, y) = (torch.linalg.qr(t.detach()) for t in (left, right))
    a, s, _ = torch.linalg.svd(x @ y.mH)
    q = q @ a
    rest = q.shape[-1]
    squares = torch.nn.functional.pad(s, (0, rest - s.shape[-1])) ** 2
    lead, q1, q2 = squares[..., None, :rank], q[..., :rank], q[..., rank:]
    gaps = lead - squares[..., rank:, None]

    def unbalanced(e: Tensor) -> Tensor:
        image = left @ (right.mH @ (right @ (left.mH @ (q1 + e))))
        return _off(q1, image) - e @ (q1.mH @ image)

    e = torch.zeros_like(q1)
    for _ in range(2):
        r = unbalanced(e)
        r = r - r.detach()  # what rounding leaves
        inner = q2.mH @ r
        e = e + _off(q2, r) / lead + q2 @ (inner / gaps)
    return q1 + e
