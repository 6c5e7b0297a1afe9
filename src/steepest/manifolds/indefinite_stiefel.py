"""Bases orthonormal in an indefinite scalar product."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg import double
from steepest.manifolds.base import Manifold
from steepest.manifolds.quadratic import Quadratic
from steepest.spec import tensor_field


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class IndefiniteStiefel(Quadratic):
    """Matrices X `(*b, n, p)` with X^H A X = J for a symmetric nonsingular A, n x n, and J a diagonal of signs: bases
    orthonormal in a scalar product that may be indefinite, hyperbolic ones among them. A definite A and J = I give the
    generalised Stiefel manifold, A = diag(signs) with p = n the pseudo-orthogonal group.

    The metric is the Euclidean one, tr(U^H V), and the coordinates are one block: `push(X, h)` is the orthogonal
    projection h - A X S, S symmetric with G S + S G = (A X)^H h + h^H A X, G = (A X)^H A X.

    Args:
        a: A `(n, n)`, real, symmetric and nonsingular; with at least as many positive (negative) eigenvalues as j has
            positive (negative) signs, for there is no such X otherwise. Nested lists become a tensor.
        j: the p signs, 1 or -1. A symmetric J with J^2 = I is Q diag(signs) Q^T; its points are those for the signs,
            times Q^T.
        retraction: "cayley", by a system of size p, or "exponential", which no step is too long for; see `Quadratic`.

    Van Tiep and Son 2024 (2410.22068); the retraction is that of Gao, Son, Absil and Stykel 2021 (2006.15226) for a
    symmetric form, in the size of Bendokat and Zimmermann 2021 (2108.12447).

    >>> m = IndefiniteStiefel(torch.diag(torch.tensor([1.0, 1.0, -1.0])), (1, -1))
    >>> x = m.random_point((3, 2))
    >>> [[round(t, 4) + 0.0 for t in row] for row in (x.T @ m.a @ x).tolist()]
    [[1.0, 0.0], [0.0, -1.0]]
    """

    a: Tensor
    j: tuple[int, ...]
    retraction: str = "cayley"

    sign: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self._check_retraction()
        a = tensor_field(self, "a")
        if a is None or a.ndim != 2 or a.shape[0] != a.shape[1] or a.is_complex() or not a.is_floating_point():
            shape = None if a is None else tuple(a.shape)
            raise ValueError(f"a: expected a real symmetric matrix (n, n) of floating-point numbers, got shape {shape}")
        if not self.j or any(sign not in (1, -1) for sign in self.j):
            raise ValueError(f"j: expected a tuple of p >= 1 signs, each 1 or -1, got {self.j!r}")
        object.__setattr__(self, "j", tuple(int(sign) for sign in self.j))
        full = double(a.detach())
        eps = torch.finfo(a.dtype).eps
        if not (full - full.mT).abs().max() <= 8 * eps * full.abs().max():
            raise ValueError("a: expected a symmetric matrix; take (a + a.T) / 2 if the asymmetry is rounding")
        w = torch.linalg.eigvalsh(full)
        if not w.abs().min() > len(w) * eps * w.abs().max():
            raise ValueError(f"a: expected a nonsingular matrix, got eigenvalues down to {w.abs().min():.2g}")
        needed = self.j.count(1), self.j.count(-1)
        got = int((w > 0).sum()), int((w < 0).sum())
        if needed[0] > got[0] or needed[1] > got[1]:
            raise ValueError(
                f"j: {needed[0]} positive and {needed[1]} negative signs, but a has {got[0]} positive and {got[1]} "
                "negative eigenvalues: no X has X^H A X = J. Expected at most as many signs of either kind"
            )

    def _form(self, x: Tensor) -> Tensor:
        return self.a.to(x) @ x

    def _j(self, m: Tensor) -> Tensor:
        return m * torch.tensor(self.j, dtype=m.dtype, device=m.device).unsqueeze(-1)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """V |D|^(-1/2) Y with A = V D V^T and Y a random point for the form sign(D): a Cayley step of size about one
        from a random orthonormal one. Not uniform: unless A is definite nothing is."""
        w, v = torch.linalg.eigh(double(self.a.detach()))
        y = IndefiniteStiefel(torch.diag(w.sign()), self.j)._random(shape, generator, **kwargs)
        return self._mended((v * w.abs().rsqrt()).to(y) @ y)

    def shape_error(self, x: Tensor) -> str:
        """As many rows as A and as many columns as signs."""
        n, p = self.a.shape[0], len(self.j)
        if x.ndim >= 2 and tuple(x.shape[-2:]) == (n, p):
            return ""
        return f"shape {tuple(x.shape)} is not (..., {n}, {p}): a is {n} x {n}, and j has {p} sign(s)"

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """An indefinite form of no special shape; the Lorentz group of the plane; both retractions."""
        a = torch.tensor([[2.0, 0.5, 0.0, 0.3], [0.5, -1.0, 0.2, 0.0], [0.0, 0.2, 1.5, 0.4], [0.3, 0.0, 0.4, -0.7]])
        lorentz = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
        return [(cls(a.double(), (1, -1, 1)), (4, 3)), (cls(lorentz.double(), (1, -1), "exponential"), (2, 2))]
