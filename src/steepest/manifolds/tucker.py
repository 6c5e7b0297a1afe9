"""Tensors of fixed multilinear rank."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from steepest.linalg import double, polar, qr, sym_power
from steepest.manifolds.base import Manifold
from steepest.manifolds.fixed_rank import gram_factor
from steepest.manifolds.fixed_rank_embedded import aligned_basis, orthonormality
from steepest.manifolds.flow import flow

Tensors = tuple[Tensor, ...]

LETTERS = "abcdefghijklmnopqrstuvwxy"


class TuckerFrame(NamedTuple):
    """The core C and the factors; for each mode the Cholesky factor L_i of C_(i) C_(i)^H and its inverse, in float64,
    and the core whitened in that mode, E_i = L_i^-1 C_(i), whose rows are orthonormal."""

    core: Tensor
    factors: Tensors
    lower: Tensors
    lower_inv: Tensors
    white: Tensors


@dataclasses.dataclass(frozen=True)
class Tucker(Manifold):
    """Tensors X of order d and multilinear rank (r1, ..., rd), as a core C `(*b, r1, ..., rd)` and d factors U_i
    `(*b, n_i, r_i)` with U_i^H U_i = I: X = C x_1 U_1 ... x_d U_d, with U_i applied to the i-th index of C.

    (C x_i Q_i^H, U_i Q_i) is the same X for all unitary Q_i. The metric is that of the space around, Re <X, Y> over all
    entries. With C_(i) the core unfolded, the i-th index its rows and all others its columns, and L_i L_i^H =
    C_(i) C_(i)^H, the coordinates are a core hC and blocks h_i `(*b, n_i, r_i)` with U_i^H h_i = 0, and

        push(x, (hC, h_1, ..., h_d)) = (hC, h_1 L_1^-1, ..., h_d L_d^-1).

    Nothing of the size of X is ever formed but in `represent`. The retraction projects X plus the step onto the spaces
    that its i-th unfoldings have in common with the rows of X's: one pass of higher-order orthogonal iteration, started
    from X. It is of second order and needs QR of thin matrices alone. Momentum is carried as the tensor that it stands
    for, projected onto the new tangent space. For order 2 this is `FixedRankEmbedded`, with V conjugate.

    Args:
        order: d, at least 2.

    Koch and Lubich 2010 (Dynamical tensor approximation), for the tangent space; Kressner, Steinlechner and
    Vandereycken 2014 (Low-rank tensor completion by Riemannian optimization), for gradient and transport; De Lathauwer,
    De Moor and Vandewalle 2000 (On the best rank-1 and rank-(R1, ..., RN) approximation), for the iteration. Whitening
    by L_i, so that an optimiser sees an orthonormal frame, and the retraction by one pass are chosen here; these
    authors retract by a truncated higher-order SVD of the core of twice the size.

    >>> manifold = Tucker(3)
    >>> x = manifold.from_tensor(torch.randn(5, 4, 3), (2, 2, 2))
    >>> [tuple(t.shape) for t in x], tuple(manifold.represent(x).shape)
    ([(2, 2, 2), (5, 2), (4, 2), (3, 2)], (5, 4, 3))
    """

    order: int = 3

    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")

    def __post_init__(self) -> None:
        if isinstance(self.order, bool) or not isinstance(self.order, int) or not 2 <= self.order <= len(LETTERS):
            raise ValueError(f"order: got {self.order!r}, expected an integer from 2 to {len(LETTERS)}")

    @property
    def arity(self) -> int:
        """The core and one factor for each mode."""
        return 1 + self.order

    @property
    def point_ndims(self) -> tuple[int, ...]:
        """A tensor of order d, and matrices."""
        return (self.order,) + (2,) * self.order

    @property
    def blocks(self) -> tuple[str, ...]:
        """One block beside each tensor of the point."""
        return ("C", *(f"U{i}" for i in range(1, self.order + 1)))

    @property
    def block_ndims(self) -> tuple[int, ...]:
        """As the point's."""
        return self.point_ndims

    def from_tensor(self, tensor: Tensor, ranks: Sequence[int]) -> Tensors:
        """The point (C, U_1, ..., U_d) near a dense tensor `(*b, n1, ..., nd)`, of multilinear rank at most `ranks`, by
        the truncated higher-order SVD: its error is at most sqrt(d) times the least one (De Lathauwer, De Moor and
        Vandewalle 2000, A multilinear singular value decomposition).

        >>> dense = torch.ones(3, 3, 3)
        >>> x = Tucker(3).from_tensor(dense, (1, 1, 1))
        >>> bool((Tucker(3).represent(x) - dense).abs().max() < 1e-5)
        True
        """
        sizes = tuple(tensor.shape[tensor.ndim - self.order :]) if tensor.ndim >= self.order else ()
        if fault := self._rank_error(sizes, tuple(ranks)):
            raise ValueError(f"ranks: {fault}; the tensor's shape is {tuple(tensor.shape)}")
        unfolded = (self._unfold(tensor, i) for i in range(self.order))
        left = (torch.linalg.svd(t, full_matrices=False)[0] for t in unfolded)
        factors = [u[..., :r] for u, r in zip(left, ranks, strict=True)]
        return (self._apply(tensor, [u.mH for u in factors]), *factors)

    # The frame. -------------------------------------------------------------------------------------------------------

    def frame(self, x: Tensors) -> TuckerFrame:
        """The Gram factors of the core's unfoldings, and what they whiten."""
        core, *factors = x
        pairs = [gram_factor(self._unfold(core, i).mH) for i in range(self.order)]
        lower, inverse = (tuple(part) for part in zip(*pairs, strict=True))
        white = tuple(self._times(double(core), t, i).to(core.dtype) for i, t in enumerate(inverse))
        return TuckerFrame(core, tuple(factors), lower, inverse, white)

    def _push(self, f: TuckerFrame, h: Tensors) -> Tensors:
        core, *rest = self._conform(f, h)
        return (core, *(k @ t.to(k.dtype) for k, t in zip(rest, f.lower_inv, strict=True)))

    def _pull(self, f: TuckerFrame, g: Tensors) -> Tensors:
        core, *rest = g
        return self._conform(f, (core, *(k @ t.mH.to(k.dtype) for k, t in zip(rest, f.lower_inv, strict=True))))

    def _coords(self, f: TuckerFrame, v: Tensors) -> Tensors:
        # Of any tangent vector of the tuples, such as one that turns U_i and leaves X: its part dX.
        core, *rest = v
        for i, (u, du) in enumerate(zip(f.factors, rest, strict=True)):
            core = core + self._times(f.core, u.mH @ du, i)
        return self._conform(f, (core, *(du @ t.to(du.dtype) for du, t in zip(rest, f.lower, strict=True))))

    def _conform(self, f: TuckerFrame, h: Tensors) -> Tensors:
        core, *rest = h
        return (core, *(_off(u, k) for u, k in zip(f.factors, rest, strict=True)))

    def _leave(self, f: TuckerFrame) -> TuckerFrame:
        return f._replace(factors=tuple(u.clone() for u in f.factors))

    def _carry(self, f: TuckerFrame, to: TuckerFrame, h: Tensors) -> Tensors:
        h = self._conform(f, h)  # an entrywise optimiser's momentum has parts that stand for nothing
        turns = [new.mH @ old for new, old in zip(to.factors, f.factors, strict=True)]
        parts = [self._along(f, h, turns, to.factors, i) for i in range(self.order)]
        core = self._times(parts[0][0], turns[0], 0) + self._times(parts[0][1], to.factors[0].mH @ h[1], 0)
        rest = []
        for i, (kept, moved) in enumerate(parts):
            rows = self._unfold(to.white[i], i).mH
            image = f.factors[i] @ (self._unfold(kept, i) @ rows) + h[1 + i] @ (self._unfold(moved, i) @ rows)
            rest.append(_off(to.factors[i], image))
        return (core, *rest)

    def _move(self, f: TuckerFrame, h: Tensors) -> Tensors:
        h = self._conform(f, h)
        core = f.core + h[0]
        factors = []
        for i, (u, k) in enumerate(zip(f.factors, h[1:], strict=True)):
            seen = self._unfold(core, i) @ self._unfold(f.white[i], i).mH  # what X's own rows see of X plus the step
            factors.append(aligned_basis(u @ seen + k, u))
        turns = [new.mH @ old for new, old in zip(factors, f.factors, strict=True)]
        kept, moved = self._along(f, (core, *h[1:]), turns, tuple(factors), 0)
        return (self._times(kept, turns[0], 0) + self._times(moved, factors[0].mH @ h[1], 0), *factors)

    def _along(
        self, f: TuckerFrame, h: Tensors, turns: Sequence[Tensor], factors: Tensors, mode: int
    ) -> tuple[Tensor, Tensor]:
        """Cores K and N with Y_(i) = U_i K_(i) + h_i N_(i), i the mode, where Y is the tensor
        hC x_j U_j + sum_j E_j x_j h_j x_(k != j) U_k with all its other indices seen from the given factors."""
        others = [j for j in range(self.order) if j != mode]

        def seen(core: Tensor, modes: Sequence[int]) -> Tensor:
            for j in modes:
                core = self._times(core, turns[j], j)
            return core

        kept = seen(h[0], others)
        for j in others:
            part = self._times(f.white[j], factors[j].mH @ h[1 + j], j)
            kept = kept + seen(part, [k for k in others if k != j])
        return kept, seen(f.white[mode], others)

    def _decay(self, f: TuckerFrame, h: Tensors, rate: float) -> Tensors:
        return (h[0] + rate * f.core, *h[1:])

    def exp(self, x: Tensors, v: Tensors) -> Tensors:
        """End of the geodesic that leaves x with velocity v, by integration of X'' normal to the tangent space:

            C'' = sum_i C x_i (U_i'^H U_i'),    U_i'' = -2 U_i' C'_(i) C_(i)^H (C_(i) C_(i)^H)^-1 - U_i U_i'^H U_i'.

        NaN where X loses rank on the way.
        """
        d = self.order
        turns = [u.mH @ du for u, du in zip(x[1:], v[1:], strict=True)]
        start = [v[0] + sum(self._times(x[0], t, i) for i, t in enumerate(turns))]
        start += [du - u @ t for u, du, t in zip(x[1:], v[1:], turns, strict=True)]

        def field(state: Tensors) -> Tensors:
            (core, *u), (slope, *du) = state[: d + 1], state[d + 1 :]
            curvature, bent = torch.zeros_like(core), []
            for i in range(d):
                gram = du[i].mH @ du[i]
                q, r = torch.linalg.qr(self._unfold(core, i).mH)  # C_(i)^H (C_(i) C_(i)^H)^-1 = Q R^-H
                turn = torch.linalg.solve_triangular(r, (self._unfold(slope, i) @ q).mH, upper=True).mH
                curvature = curvature + self._times(core, gram, i)
                bent.append(-2 * du[i] @ turn - u[i] @ gram)
            return (*state[d + 1 :], curvature, *bent)

        return flow(field, (*x, *start))[: d + 1]

    # Points. ----------------------------------------------------------------------------------------------------------

    def represent(self, x: Tensors) -> Tensor:
        """X = C x_1 U_1 ... x_d U_d, `(*b, n1, ..., nd)`."""
        return self._apply(x[0], x[1:])

    def project(self, x: Tensors) -> Tensors:
        """The same X, with the triangular factors of the U_i moved into the core."""
        factors, triangles = zip(*(qr(u) for u in x[1:]), strict=True)
        return (self._apply(x[0], triangles), *factors)

    def residual(self, x: Tensors) -> Tensor:
        """Largest entry of `|U_i^H U_i - I|`; NaN where an entry of the core is not finite. A core of less rank is a
        limit of points, and counts as one."""
        worst = (x[0] * 0).sum(tuple(range(-self.order, 0))).abs()
        for u in x[1:]:
            worst = torch.maximum(worst, orthonormality(u))
        return worst

    def random_point(self, shape: Any, *, generator: Any = None, **kwargs: Any) -> Tensors:
        """Uniform spaces, and a Gaussian core, evened out by (C_(i) C_(i)^H)^(-1/4) in each mode; the entries of X have
        root mean square one."""
        core, *factors = (torch.randn(size, generator=generator, **kwargs) for size in shape)
        for i in range(self.order):
            rows = self._unfold(core, i)
            core = self._times(core, sym_power(rows @ rows.mH, -0.25), i)
        length = torch.linalg.vector_norm(core, dim=tuple(range(-self.order, 0)), keepdim=True)
        return (core * (math.prod(size[-2] for size in shape[1:]) ** 0.5 / length), *(polar(u) for u in factors))

    def shape_error(self, x: Tensors) -> str:
        """A core and as many factors as it has indices, of ranks that a tensor can have."""
        core, *factors = (tuple(t.shape) for t in x)
        batch, ranks = core[: len(core) - self.order], core[len(core) - self.order :]
        if len(core) < self.order or any(len(u) < 2 or u[:-2] != batch for u in factors):
            return (
                f"core of shape {core} and factors of shapes {', '.join(map(str, factors))}: expected "
                f"(..., r1, ..., r{self.order}) and {self.order} factors (..., n_i, r_i)"
            )
        for i, (u, r) in enumerate(zip(factors, ranks, strict=True)):
            if u[-1] != r:
                return f"factor {i + 1} of shape {u} does not fit a core of shape {core}: expected (..., n, {r})"
        return self._rank_error(tuple(u[-2] for u in factors), ranks)

    def _rank_error(self, sizes: tuple[int, ...], ranks: tuple[int, ...]) -> str:
        """What is wrong with the ranks of a tensor of the given sizes."""
        if len(ranks) != self.order or len(sizes) != self.order:
            return f"got ranks {ranks} for sizes {sizes}, expected {self.order} of each"
        for i, (n, r) in enumerate(zip(sizes, ranks, strict=True)):
            bound = min(n, math.prod(ranks[:i] + ranks[i + 1 :]))
            if not 1 <= r <= bound:
                return (
                    f"rank r{i + 1} = {r} is none of a tensor of sizes {sizes} and ranks {ranks}: expected at least 1 "
                    f"and at most n{i + 1} and the product of the other ranks, here {bound}"
                )
        return ""

    def dim(self, shape: Any, scalars: str = "real") -> int:
        """prod r_i + sum (n_i - r_i) r_i; of complex tensors twice that."""
        core, *factors = shape
        dimension = math.prod(core[-self.order :]) + sum((u[-2] - u[-1]) * u[-1] for u in factors)
        return dimension * (2 if scalars == "complex" else 1)

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Order three, with a full rank; order two; order four with rank one in two modes; a single number."""
        return [
            (cls(3), ((2, 2, 2), (3, 2), (2, 2), (3, 2))),
            (cls(2), ((2, 2), (4, 2), (3, 2))),
            (cls(4), ((2, 1, 2, 1), (3, 2), (2, 1), (2, 2), (1, 1))),
            (cls(3), ((1, 1, 1), (1, 1), (1, 1), (1, 1))),
        ]

    # Indices. ---------------------------------------------------------------------------------------------------------

    def _times(self, core: Tensor, a: Tensor, mode: int) -> Tensor:
        """core x_i a: the matrix a `(*b, p, r_i)` applied to index i of a core `(*b, r1, ..., rd)`."""
        old = LETTERS[: self.order]
        return torch.einsum(f"...{old},...z{old[mode]}->...{old.replace(old[mode], 'z')}", core, a)

    def _apply(self, core: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        """core x_1 a_1 ... x_d a_d."""
        for i, a in enumerate(matrices):
            core = self._times(core, a, i)
        return core

    def _unfold(self, core: Tensor, mode: int) -> Tensor:
        """Index i as rows, all others, in their order, as columns: `(*b, r_i, product of the others)`."""
        return core.movedim(mode - self.order, -self.order).flatten(1 - self.order)


def _off(u: Tensor, z: Tensor) -> Tensor:
    """z without its part in the span of u."""
    return z - u @ (u.mH @ z)
