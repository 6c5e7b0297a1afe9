"""Descent in random submanifolds of the orthogonal group."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg import skew
from steepest.linalg.basis import orthonormal_basis
from steepest.manifolds.base import Manifold
from steepest.manifolds.grassmann import Grassmann
from steepest.manifolds.orthogonal import RETRACTIONS, Orthogonal, SpecialOrthogonal, Unitary
from steepest.manifolds.stiefel import Stiefel
from steepest.solvers.base import Method, State
from steepest.solvers.coordinate_descent import armijo, fixed
from steepest.solvers.line_search import Armijo, Found, LineSearch, guess
from steepest.solvers.problem import Iterate

MANIFOLDS = (Stiefel, Grassmann, Orthogonal, SpecialOrthogonal, Unitary)
SAMPLINGS = ("permutation", "orthogonal")


@dataclasses.dataclass(frozen=True)
class RandomSubmanifold(Method):
    """Steps X -> P^T diag(U, I) P X with a random orthogonal P and U an orthogonal matrix of size r: a step turns X
    `(n, p)` in r random dimensions of R^n, and is retracted as an r x r matrix however large X is.

    With P_r `(r, n)` the first rows of P, U is a step along the negative of skew(P_r G X^T P_r^T), the gradient of
    f(P^T diag(U, I) P X) at U = I, and X changes by P_r^T (U - I) P_r X. For P a permutation these are r rows of X:
    4 r^2 p operations beside those of U. For P uniform (Haar) it takes 6 n r p, and a QR factorisation of n x r.

    A gradient by autograd is one of all of X, and `minimize` looks at its norm, n p^2 operations, after each step:
    `inner` steps are gone between two looks. What a step saves is the retraction, and it loses that the gradient is
    followed in r dimensions of n alone.

    Args:
        dim: r, at least two of the n rows. None: half of them.
        sampling: "permutation", rows of X; "orthogonal", uniform.
        inner: steps, each in a submanifold of its own, to one iteration of `minimize`.
        step_size: t of the step -t times the gradient. None: by `line_search`, from what the last step has found.
        line_search: Armijo's rule on t.
        retraction: of U, as of `Orthogonal`.

    Han, Poirion and Takeda 2025, "Efficient optimization with orthogonality constraint: a randomized Riemannian
    submanifold method" (2505.12378), and their code, whose retraction is "qr" and whose step is fixed. On a subspace
    X (`Grassmann`) it is the same method: turning X from the left turns the subspace.

    >>> from steepest import Orthogonal, minimize
    >>> a = torch.diag(torch.tensor([3.0, 2.0, 1.0, 1.0]))
    >>> x0 = torch.linalg.matrix_exp(torch.triu(torch.ones(4, 4), 1) - torch.tril(torch.ones(4, 4), -1))
    >>> from steepest.solvers import RandomSubmanifold
    >>> result = minimize(lambda x: -(a * x).sum(), x0, Orthogonal(), RandomSubmanifold(2), tolerance=1e-3)
    >>> round(result.value, 3)
    -7.0
    """

    dim: int | None = None
    sampling: str = "permutation"
    inner: int = 1
    step_size: float | None = None
    line_search: LineSearch = dataclasses.field(default_factory=Armijo)
    retraction: str = "qr"

    def __post_init__(self) -> None:
        for name, known in (("sampling", SAMPLINGS), ("retraction", RETRACTIONS)):
            if (got := getattr(self, name)) not in known:
                raise ValueError(f"{name}: unknown {got!r}, expected one of {', '.join(known)}")
        check_range("dim", 2 if self.dim is None else self.dim, 2)
        check_range("inner", self.inner, 1)
        if self.step_size is not None:
            check_range("step_size", self.step_size, open_low=True)
        object.__setattr__(self, "line_search", armijo(self.line_search))

    def fault(self, manifold: Manifold, x: Any) -> str:
        """Manifolds on which the orthogonal (unitary) group acts from the left, and as many rows as dimensions."""
        if not isinstance(manifold, MANIFOLDS):
            return f"turns {', '.join(m.__name__ for m in MANIFOLDS)}, got {manifold}"
        if x.shape[-2] < (self.dim or 1):
            return f"dim: got {self.dim}, expected at most the number of rows of x, {x.shape[-2]}"
        return ""

    def init(self, at: Iterate) -> State:
        """A step as far as a unit vector, or as the gradient where that is shorter."""
        return {"step": 1 / max(at.norm, 1.0)}

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """`inner` steps, each in a new submanifold."""
        first, t = state["step"], 0.0
        for k in range(self.inner):
            path, slope = self._submanifold(at, at.problem.generator(state["iteration"], k))
            found = self._search(path, at, slope, first) if slope else None
            if found is not None:
                t, to = found
                at, first = to, guess(at, to, slope, t)
        return at, {"step": first, "note": {"step": t}}

    def _submanifold(self, at: Iterate, generator: torch.Generator) -> tuple[Any, float]:
        """The curve t -> P^T diag(U(-t S), I) P X for S the gradient in a random submanifold, and f's slope at 0."""
        x, g = at.x, at.covector.detach()
        r = self.dim or max(2, x.shape[-2] // 2)
        sample = _rows if self.sampling == "permutation" else _subspace
        take, put = sample(x, min(r, x.shape[-2]), generator)
        part = take(x)
        s = skew(take(g) @ part.mH)
        group = (Unitary if x.is_complex() else Orthogonal)(self.retraction)
        eye = torch.eye(s.shape[-1], dtype=x.dtype, device=x.device)

        def path(t: float) -> Iterate:
            return Iterate(at.problem, put(group._move(eye, -t * s) @ part))

        return path, -float(s.abs().square().sum())

    def _search(self, path: Any, at: Iterate, slope: float, initial: float) -> Found | None:
        assert isinstance(self.line_search, Armijo)
        if self.step_size is None:
            return self.line_search.along(path, at, slope, initial)
        return fixed(path, self.step_size)

    @classmethod
    def examples(cls) -> list[Method]:
        """Both samplings; two rows at a time; several steps to an iteration."""
        return [cls(), cls(2, "orthogonal", retraction="cayley"), cls(2, inner=4)]


def _rows(x: Tensor, r: int, generator: torch.Generator) -> tuple[Any, Any]:
    """To take P_r of a matrix, and to put r new rows in place of P_r X: for P a permutation."""
    index = torch.randperm(x.shape[-2], generator=generator, device=generator.device)[:r].to(x.device)
    return lambda m: m.index_select(-2, index), lambda rows: x.index_copy(-2, index, rows)


def _subspace(x: Tensor, r: int, generator: torch.Generator) -> tuple[Any, Any]:
    """The same for P uniform: the Q of a Gaussian matrix, drawn in float64 so that it does not depend on the dtype."""
    kind = torch.complex128 if x.is_complex() else torch.float64
    q = orthonormal_basis(torch.randn(x.shape[-2], r, dtype=kind, generator=generator, device=generator.device).to(x))
    return lambda m: q.mH @ m, lambda rows: x + q @ (rows - q.mH @ x)
