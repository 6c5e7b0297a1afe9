"""Couplings of positive definite marginals."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from steepest.linalg import sym, sym_exp
from steepest.manifolds.base import Manifold
from steepest.manifolds.spd.factors import square, whiten
from steepest.spec import tensor_field

NEWTON = 60
"""Most steps that restore the marginals; near them four reach round-off."""
REACH = 1.0
"""Largest step of these, in the affine-invariant metric of one block."""


class Frame(NamedTuple):
    """The blocks, their Cholesky factors, and the factors of the equation of the multipliers."""

    x: Tensor
    lower: Tensor
    rows: Tensor
    schur: Tensor


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SPDCoupling(Manifold):
    """Positive definite blocks X_ij `(*b, m, n, d, d)` with given block sums: sum_j X_ij = P_i, sum_i X_ij = Q_j.

    They are transport plans between two sets of positive definite masses (for d = 1, between two histograms). The
    metric is affine-invariant in each block, sum tr(X_ij^-1 U_ij X_ij^-1 V_ij). With X_ij = L_ij L_ij^T and Pi the
    orthogonal projection that takes the block sums out, h_ij - L_ij^T (A_i + B_j) L_ij,
    `push(X, h) = L Pi(sym(h)) L^T`; the multipliers cost Cholesky factorisations of m blocks and of one matrix of size
    n d^2. The retraction is the geodesic of each block, followed by Newton steps normal to the manifold, geodesic as
    well, until the marginals are right.

    Args:
        rows: P `(m, d, d)`, symmetric positive definite.
        columns: Q `(n, d, d)`, likewise, with the same sum.

    Han, Mishra, Jawanpuria and Gao 2022 (2201.12933), section 3; they balance by alternating congruences instead.

    >>> eye = torch.eye(2)
    >>> manifold = SPDCoupling(torch.stack([eye, eye]), torch.stack([eye, eye]))
    >>> x = manifold.random_point((2, 2, 2, 2))
    >>> bool((x.sum(0) - eye).abs().max() < 1e-4)
    True
    """

    rows: Any
    columns: Any

    ndim: ClassVar[int] = 4

    def __post_init__(self) -> None:
        p, q = (_marginal(name, tensor_field(self, name)) for name in ("rows", "columns"))
        gap = (p.sum(0) - q.sum(0)).abs().max() / p.sum(0).abs().max()
        if p.shape[-1] != q.shape[-1] or not gap < 1e-6:
            raise ValueError("columns: expected blocks of the size of those of rows, and of the same sum")

    def frame(self, x: Tensor) -> Frame:
        """Cholesky factors of the blocks and of the multipliers' equation."""
        lower, _ = torch.linalg.cholesky_ex(sym(x))
        m, n, d = x.shape[-4], x.shape[-3], x.shape[-1]
        # vec(X A X) = (X kron X) vec(A)
        k = torch.einsum("...ac,...bd->...abcd", x, x).reshape(*x.shape[:-2], d * d, d * d)
        rows, _ = torch.linalg.cholesky_ex(k.sum(-3))
        flat = k.movedim(-3, -2).reshape(*k.shape[:-4], m, d * d, n * d * d)  # the row i of blocks (X_ij kron X_ij)_j
        half = torch.linalg.solve_triangular(rows, flat, upper=False)
        total = k.sum(-4)
        schur = _block_diag(total) - (half.mT @ half).sum(-3)
        # kernel: equal A_i = -B_j; filled with the mean size of the diagonal
        size = total.diagonal(dim1=-2, dim2=-1).mean((-2, -1))[..., None, None]
        eye = torch.eye(d * d, dtype=x.dtype, device=x.device)
        schur = schur + size * eye.repeat(n, n) / n
        return Frame(x, lower, rows, torch.linalg.cholesky_ex(schur)[0])

    def _multipliers(self, f: Frame, r: Tensor, c: Tensor) -> Tensor:
        """A_i + B_j, `(*b, m, n, d, d)`, with block sums r `(*b, m, d, d)` and c `(*b, n, d, d)` of X (A_i + B_j) X."""
        n, d = f.x.shape[-3], f.x.shape[-1]
        first = torch.cholesky_solve(r.reshape(*r.shape[:-2], d * d, 1), f.rows).reshape(r.shape)
        right = c - (f.x @ first.unsqueeze(-3) @ f.x).sum(-4)
        b = torch.cholesky_solve(right.reshape(*right.shape[:-3], n * d * d, 1), f.schur).reshape(right.shape)
        rest = r - (f.x @ b.unsqueeze(-4) @ f.x).sum(-3)
        a = torch.cholesky_solve(rest.reshape(*rest.shape[:-2], d * d, 1), f.rows).reshape(rest.shape)
        return sym(a.unsqueeze(-3) + b.unsqueeze(-4))

    def _conform(self, f: Frame, h: Tensor) -> Tensor:
        h = sym(h)
        v = f.lower @ h @ f.lower.mT
        return h - f.lower.mT @ self._multipliers(f, v.sum(-3), v.sum(-4)) @ f.lower

    def _push(self, f: Frame, h: Tensor) -> Tensor:
        return sym(f.lower @ self._conform(f, h) @ f.lower.mT)

    def _pull(self, f: Frame, g: Tensor) -> Tensor:
        return self._conform(f, f.lower.mT @ sym(g) @ f.lower)

    def _coords(self, f: Frame, v: Tensor) -> Tensor:
        return self._conform(f, whiten(f.lower, v))

    def _move(self, f: Frame, h: Tensor) -> Tensor:
        return self._balanced(_step(f.lower, self._conform(f, h)))

    def _balanced(self, y: Tensor) -> Tensor:
        """y moved onto the marginals: Newton's method along geodesics of the blocks, normal to the manifold."""
        p, q = self.rows.to(y), self.columns.to(y)
        for _ in range(NEWTON):
            f = self.frame(y)
            change = f.lower.mT @ self._multipliers(f, p - y.sum(-3), q - y.sum(-4)) @ f.lower
            size = torch.linalg.matrix_norm(change.detach()).amax((-2, -1))[..., None, None, None, None]
            y = _step(f.lower, change * (REACH / size.clamp_min(REACH)))
            if size.max() <= torch.finfo(y.dtype).eps ** 0.5:  # the error falls with the square
                break
        return y

    def project(self, x: Tensor) -> Tensor:
        """Blocks made positive definite, eigenvalues raised to at least `sqrt(eps)` times the largest, then moved onto
        the marginals: a nearby point, not the nearest."""
        w, v = torch.linalg.eigh(sym(x))
        floor = torch.finfo(x.dtype).eps ** 0.5 * w.amax((-3, -2, -1), keepdim=True)
        return self._balanced(sym((v * torch.maximum(w, floor).unsqueeze(-2)) @ v.mT))

    def residual(self, x: Tensor) -> Tensor:
        """Largest error of a block sum, relative to the largest entry of the marginals, or asymmetry; infinite where a
        block is not positive definite."""
        p, q = self.rows.to(x), self.columns.to(x)
        scale = torch.maximum(p.abs().amax(), q.abs().amax())
        errors = ((x.sum(-3) - p), (x.sum(-4) - q), (x - x.mT).flatten(-4, -3))
        worst = torch.stack([(e.abs() / scale).amax((-3, -2, -1)) for e in errors]).amax(0)
        _, info = torch.linalg.cholesky_ex(sym(x))
        return torch.where((info == 0).all(-1).all(-1) | worst.isnan(), worst, torch.inf)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Wishart-like blocks around equal shares, moved onto the marginals."""
        a = torch.randn(shape, generator=generator, **kwargs)
        m, n, d = shape[-4], shape[-3], shape[-1]
        share, _ = torch.linalg.cholesky_ex(self.rows.to(a).unsqueeze(-3).expand(m, n, d, d) / n)
        eye = torch.eye(d, dtype=a.dtype, device=a.device)
        return self._balanced(sym(share @ (a @ a.mT / (2 * d) + eye / 2) @ share.mT))

    def shape_error(self, x: Tensor) -> str:
        """Arrays of square blocks of the sizes of the marginals."""
        expected = (len(self.rows), len(self.columns), *self.rows.shape[-2:])
        if tuple(x.shape[-4:]) == expected:
            return ""
        return f"shape {tuple(x.shape)} is not (..., m, n, d, d) = (..., {', '.join(map(str, expected))})"

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """(m - 1) (n - 1) d (d + 1) / 2."""
        m, n, d, _ = shape[-4:]
        return (m - 1) * (n - 1) * d * (d + 1) // 2

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Blocks of size 2; of size 1; a single block."""
        p = [[[1.0, 0.2], [0.2, 0.6]], [[0.5, -0.1], [-0.1, 0.9]]]
        q = [[[0.4, 0.0], [0.0, 0.5]], [[0.7, 0.1], [0.1, 0.6]], [[0.4, 0.0], [0.0, 0.4]]]
        return [
            (cls(p, q), (2, 3, 2, 2)),
            (cls([[[0.4]], [[0.6]]], [[[0.5]], [[0.5]]]), (2, 2, 1, 1)),
            (cls(p[:1], p[:1]), (1, 1, 2, 2)),
        ]


def _step(lower: Tensor, h: Tensor) -> Tensor:
    """The geodesic L exp(h) L^T, positive definite by construction."""
    return square(lower @ sym_exp(h / 2))


def _block_diag(blocks: Tensor) -> Tensor:
    """`(*b, n, k, k)` as `(*b, n k, n k)` with the blocks on the diagonal."""
    n, k = blocks.shape[-3:-1]
    spread = torch.diag_embed(blocks.movedim(-3, -1), dim1=-4, dim2=-2)
    return spread.reshape(*blocks.shape[:-3], n * k, n * k)


def _marginal(name: str, blocks: Tensor | None) -> Tensor:
    if blocks is None or blocks.ndim != 3 or blocks.shape[-1] != blocks.shape[-2] or not len(blocks):
        shape = None if blocks is None else tuple(blocks.shape)
        raise ValueError(f"{name}: expected blocks (m, d, d), got shape {shape}")
    _, info = torch.linalg.cholesky_ex(blocks.detach())
    if bool((info != 0).any()) or not torch.allclose(blocks, blocks.mT, rtol=1e-5):
        raise ValueError(f"{name}: expected symmetric positive definite blocks, block {int(info.argmax())} is not")
    return blocks
