"""A Hessian from a few of its products: the randomised Nyström approximation, in the frame at a point."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.symmetric import sym
from steepest.solvers.problem import Iterate

KEPT = 2 / 3
"""Share of an indefinite core that is inverted."""


@dataclasses.dataclass(frozen=True)
class Nystrom:
    """A symmetric matrix of low rank, U diag(w) U^T, in place of a Hessian.

    >>> from steepest.solvers import Nystrom
    >>> low = Nystrom(torch.eye(3)[:2], torch.tensor([4.0, -1.0]))
    >>> low.product(torch.ones(3)).tolist(), low.solve(torch.ones(3), shift=1.0, tail=1.0).numpy().round(3)
    ([4.0, -1.0, 0.0], array([0.2, 0.5, 0.5], dtype=float32))
    """

    vectors: Tensor
    """U^T, orthonormal rows, `(k, n)`."""
    values: Tensor
    """w, `(k,)`, by falling size; negative ones too where the Hessian has them."""
    complete: bool = False
    """Whether the sketch spanned the whole space, so that this is the Hessian."""

    @property
    def largest(self) -> float:
        """Size of the largest eigenvalue."""
        return float(self.values[0].abs()) if len(self.values) else 0.0

    @property
    def tail(self) -> float:
        """Size of the smallest eigenvalue that is kept: what the others may be as large as; zero if there are none."""
        return 0.0 if self.complete or not len(self.values) else float(self.values[-1].abs())

    def product(self, z: Tensor) -> Tensor:
        """The matrix times vectors `(*k, n)`."""
        return ((z @ self.vectors.mT) * self.values) @ self.vectors

    def solve(self, z: Tensor, shift: float, tail: float | None = None) -> Tensor:
        """(U |diag(w)| U^T + tail (I - U U^T) + shift I)^-1 z: positive definite, for `shift` > 0, whatever the signs.

        As a preconditioner (Frangella, Tropp and Udell 2021, equation 1.4) `tail` is the smallest eigenvalue, the
        default; with 0 it is the inverse of the approximation itself.
        """
        rest = shift + (self.tail if tail is None else tail)
        inside = 1 / (self.values.abs() + shift) - 1 / rest
        return z / rest + ((z @ self.vectors.mT) * inside) @ self.vectors


def nystrom(at: Iterate, rank: int, generator: torch.Generator) -> Nystrom:
    """Of the Riemannian Hessian at a point, from `rank` products with Gaussian tangent vectors, all at once.

    Args:
        at: the point; its problem keeps what products need (`problem.curvature`).
        rank: vectors in the sketch, at most as many as the tangent space has dimensions.
        generator: that draws them.

    >>> from steepest.solvers import Problem, nystrom
    >>> problem = Problem(lambda x: (torch.arange(1.0, 5.0) * x**2).sum() / 2, Euclidean(1))
    >>> problem.curvature = True
    >>> nystrom(problem.at(torch.ones(4)), 4, problem.generator(0)).values.numpy().round(3)
    array([4., 3., 2., 1.], dtype=float32)
    """
    check_range("rank", rank, 1)
    return sketched(at.product, at.random(generator, min(rank, at.size)))


def sketched(product: Callable[[Tensor], Tensor], omega: Tensor) -> Nystrom:
    """The approximation H W (W^T H W)^+ W^T H of a symmetric H from its products with the rows of W^T, `(k, n)`.

    Of a semidefinite H in the stable form: with W orthonormal and a shift nu by rounding, the singular values of
    (H + nu) W C^-1, C^T C = W^T (H + nu) W, squared and less nu (Tropp, Yurtsever, Udell and Cevher 2017; Frangella,
    Tropp and Udell 2021, 2110.02820, algorithm 2.1). Where W^T H W is not positive definite, its eigenvalues may be
    arbitrarily near zero although H has none such, and its inverse arbitrarily wrong: the largest two thirds alone are
    inverted (Nakatsukasa and Park 2023, 2212.01127). Vectors W that depend on each other are joined first; W of all of
    the space gives H. Where all products vanish no values are left; where one is not finite, all values are NaN.
    """
    basis = orthonormal(omega)
    y = product(basis)
    core = sym(basis @ y.mT)
    if not y.isfinite().all():
        return Nystrom(basis, torch.full_like(basis[:, 0], torch.nan))
    if len(basis) < len(omega) or len(basis) == omega.shape[-1]:
        values, v = torch.linalg.eigh(core)
        return _sorted(v.mT @ basis, values, True)
    shift = torch.finfo(y.dtype).eps * torch.linalg.vector_norm(y)
    eye = torch.eye(len(core), dtype=core.dtype, device=core.device)
    lower, info = torch.linalg.cholesky_ex(core + shift * eye)
    if info == 0:
        root = torch.linalg.solve_triangular(lower, y + shift * basis, upper=False)
        _, s, u = torch.linalg.svd(root, full_matrices=False)
        return _sorted(u, (s**2 - shift).clamp_min(0), False)
    return _indefinite(y, core)


def _indefinite(y: Tensor, core: Tensor) -> Nystrom:
    c, v = torch.linalg.eigh(core)
    kept = c.abs().argsort(descending=True)[: max(1, int(KEPT * len(c)))]
    kept = kept[c[kept] != 0]
    q, r = torch.linalg.qr(y.mT @ v[:, kept])
    values, v = torch.linalg.eigh(sym((r / c[kept]) @ r.mT))
    return _sorted(v.mT @ q.mT, values, False)


def orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis, as rows, of what the rows span."""
    _, s, v = torch.linalg.svd(rows, full_matrices=False)
    return v[s > s[0] * max(rows.shape) * torch.finfo(rows.dtype).eps]


def _sorted(vectors: Tensor, values: Tensor, complete: bool) -> Nystrom:
    order = values.abs().argsort(descending=True)
    return Nystrom(vectors[order], values[order], complete)
