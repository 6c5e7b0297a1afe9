"""The hypergradient by conjugate gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.cg import conjugate_gradient
from steepest.solvers.bilevel.hypergradient import Estimate, Hypergradient, implicit
from steepest.solvers.bilevel.levels import Pair


@dataclasses.dataclass(frozen=True)
class CG(Hypergradient):
    """v by conjugate gradients for Hess_y g v = grad_y f: its error falls by (sqrt k - 1) / (sqrt k + 1) a step, for
    the condition number k of the Hessian.

    Args:
        iterations: at most, one product with the Hessian each.
        tolerance: of the residual, relative to grad_y f; at least ten times the precision.

    Han, Mishra, Jawanpuria and Takeda 2024 (2402.03883), CG. Their code solves the system of the squared Hessian, which
    need not be positive definite, and whose condition number is squared. Here y is near a minimum, and a direction
    without positive curvature ends the iteration, which the residual shows.

    >>> from steepest.solvers import CG, RHGD, bilevel
    >>> upper, lower = lambda x, y: (y - 1).square().sum(), lambda x, y: (y - x.exp()).square().sum()
    >>> bilevel(upper, lower, torch.ones(2), torch.ones(2), method=RHGD(CG(10))).success
    True
    """

    iterations: int = 50
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        check_range("iterations", self.iterations, 1)
        check_range("tolerance", self.tolerance)

    def estimate(self, pair: Pair) -> Estimate:
        """One product a step, and one for the residual."""
        seen, b = _Lanczos(pair.curved), pair.pressure
        tolerance = max(self.tolerance, 10 * torch.finfo(b.dtype).eps)
        v, _ = conjugate_gradient(seen, b, 1, tolerance, self.iterations)
        return implicit(pair, v, seen.smallest())

    @classmethod
    def examples(cls) -> list[Hypergradient]:
        """To the end, and not."""
        return [cls(), cls(3)]


class _Lanczos:
    """An operator that follows the recursion of the conjugate gradients that it serves: their step lengths are the
    tridiagonal matrix of Lanczos, whose eigenvalues approach those of the operator (Golub and Van Loan, 10.2.5)."""

    def __init__(self, product: Callable[[Tensor], Tensor]) -> None:
        self.product = product
        self.residual: Tensor | None = None
        self.alphas: list[float] = []
        self.betas: list[float] = []

    def __call__(self, p: Tensor) -> Tensor:
        ap = self.product(p)
        r = p if self.residual is None else self.residual
        rr, curvature = float(r @ r), float(p @ ap)
        alpha = rr / curvature if curvature != 0 else math.inf
        self.residual = r - alpha * ap
        self.alphas.append(alpha)
        self.betas.append(float(self.residual @ self.residual) / rr if rr > 0 else 0.0)
        return ap

    def smallest(self) -> float:
        """Ritz value; infinite before the first product."""
        a, b = self.alphas, self.betas
        if not a or not all(map(math.isfinite, a)):
            return math.inf if not a else 0.0
        k = len(a)
        main = [1 / a[i] + (b[i - 1] / a[i - 1] if i else 0.0) for i in range(k)]
        side = torch.tensor([math.sqrt(b[i]) / a[i] for i in range(k - 1)], dtype=torch.float64)
        t = torch.diag(torch.tensor(main, dtype=torch.float64)) + torch.diag(side, 1) + torch.diag(side, -1)
        return float(torch.linalg.eigvalsh(t)[0])
