"""Newton's method with a line search."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.hessian import Exact, FiniteDifference, HessianModel
from steepest.solvers.line_search import Armijo, Found, HagerZhang, LineSearch, rounding
from steepest.solvers.problem import Iterate
from steepest.solvers.truncated_cg import forcing, truncated_cg


@dataclasses.dataclass(frozen=True)
class Newton(Method):
    """A line search along an approximate solution p of Newton's equation H p = -g, by conjugate gradients.

    They end at |g + H p| <= eta |g| with the forcing term eta = 0.9 (|g| / |g_before|)^2, at most `forcing`: quadratic
    convergence, without solving more exactly than the model is worth, or than half of what the run's tolerance asks
    for. They end, too, where a direction has no positive curvature; that one is followed as far as if its curvature
    were the geometric mean of its own size and of the largest seen, so that p descends, and leaves saddles. The line
    search tries p itself first. Where values no longer tell, a p that shortens the gradient is taken.

    Args:
        line_search: how far to go.
        hessian: what products are taken with: `Exact()`, `FiniteDifference()` or `GaussNewton()`.
        forcing: the largest eta.
        inner: products for one step at most. None: as many as there are coordinates.

    Nocedal and Wright 2006, algorithm 7.1, which throws the direction without positive curvature away; Eisenstat and
    Walker 1996, the forcing term; Kelley 1995, equation 6.22, the bound by the tolerance.

    >>> from steepest import Stiefel, minimize
    >>> a = torch.diag(torch.arange(1.0, 6.0))
    >>> x0 = Stiefel().random_point((5, 2), generator=torch.Generator().manual_seed(0))
    >>> result = minimize(lambda x: (x.T @ a @ x).trace(), x0, Stiefel(), "Newton", tolerance=1e-4)
    >>> round(result.value, 4), result.success
    (3.0, True)
    """

    line_search: LineSearch = dataclasses.field(default_factory=lambda: Armijo(refine=True))
    hessian: HessianModel = dataclasses.field(default_factory=Exact)
    forcing: float = 0.2
    inner: int | None = None

    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "line_search", LineSearch.from_spec(self.line_search))
        object.__setattr__(self, "hessian", HessianModel.from_spec(self.hessian))
        check_range("forcing", self.forcing, 0, 1, open_low=True, open_high=True)
        if self.inner is not None:
            check_range("inner", self.inner, 1)

    @property
    def curvature(self) -> bool:
        """As the model of the Hessian has it."""
        return self.hessian.curvature

    def init(self, at: Iterate) -> State:
        """The first forcing term is the largest."""
        return {"norm": at.norm, "forcing": self.forcing}

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """Newton's direction, and the line search."""
        eta = forcing(at.norm, state["norm"], state["forcing"], 2, self.forcing)
        residual = max(eta * at.norm, at.problem.tolerance / 2)
        product = self.hessian.operator(at)
        path = truncated_cg(product, at.gradient, at.norm, math.inf, residual, self.inner or at.size)
        if not path.end.length:
            raise Stop("products with the Hessian are not finite, or the square of the gradient is zero")
        t, to = self._along(at, path.end.z)
        return to, {"norm": at.norm, "forcing": eta, "note": {"step": t, "inner": path.inner, "ended": path.why}}

    def _along(self, at: Iterate, p: Tensor) -> Found:
        slope = float(torch.dot(at.gradient, p))
        noise = 10 * rounding(at)
        if -slope < noise and (full := at.move(p)).value <= at.value + noise and full.norm < at.norm:
            return 1.0, full
        found = self.line_search.search(at, p, slope, 1.0)
        if found is None:
            raise Stop("no step decreases the function: rounding, or a gradient that is not its gradient")
        return found

    @classmethod
    def examples(cls) -> list[Method]:
        """Both ways to a Hessian; another line search, less exact solutions."""
        return [cls(), cls(hessian=FiniteDifference()), cls(HagerZhang(), forcing=0.5, inner=10)]
