"""The trust-region method."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import ClassVar

import torch

from steepest.checks import check_range
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.hessian import Exact, FiniteDifference, HessianModel
from steepest.solvers.problem import Iterate
from steepest.solvers.truncated_cg import forcing, truncated_cg

POOR, GOOD = 0.25, 0.75
"""Shares of the model's decrease below which the radius shrinks to a quarter, and above which it doubles."""
TRIALS = 40
"""Shorter steps in one."""


@dataclasses.dataclass(frozen=True)
class TrustRegion(Method):
    """Steps that nearly minimise a quadratic model within a ball, whose radius follows how well the model foretells.

    The model is minimised by truncated conjugate gradients (`truncated_cg`), which use negative curvature to leave
    saddles, until its gradient is at most kappa |g|, and near the optimum 0.9 (|g| / |g_before|)^(1 + theta) |g|, where
    g is the gradient, and g_before the one before the last step: convergence of order 1 + theta. No solution is more
    exact than half of what the run's tolerance asks for.

    A step is accepted where the function falls by more than the share `accept` of what the model says. Where not, the
    same conjugate gradients give shorter steps at the price of one value of the function each, until one is accepted;
    an iteration always moves.

    Args:
        hessian: what products are taken with: `Exact()`, `FiniteDifference()` or `GaussNewton()`.
        kappa: accuracy of the model's minimiser, relative to the gradient, far from the optimum.
        theta: order of convergence less one, at most one.
        radius: of the first ball. None: an eighth of the root of the number of coordinates.
        max_radius: of all balls. None: none, as steps that are too long cost one value each.
        accept: share of the model's decrease.
        regularization: multiple of the precision of the function's values (of the largest seen) that is added to both
            decreases before they are compared: near the optimum both are below rounding, and the step is trusted.
        inner: products for one step at most. None: as many as there are coordinates.

    Absil, Baker and Gallivan 2007, "Trust-region methods on Riemannian manifolds", algorithms 1 and 2, with Manopt's
    constants; Conn, Gould and Toint 2000, section 17.4.2, the regularisation; Eisenstat and Walker 1996, the accuracy
    of the model's minimiser, and Kelley 1995, equation 6.22, its bound by the tolerance. Manopt has min(0.1, |g|^theta)
    for that accuracy, and regularises by max(1, |f|), which both depend on the function's unit.

    >>> from steepest import Grassmann, minimize
    >>> a = torch.diag(torch.arange(1.0, 6.0))
    >>> x0 = Grassmann().random_point((5, 2), generator=torch.Generator().manual_seed(0))
    >>> result = minimize(lambda x: (x.T @ a @ x).trace(), x0, Grassmann(), "TrustRegion", tolerance=1e-4)
    >>> round(result.value, 4), result.success
    (3.0, True)
    """

    hessian: HessianModel = dataclasses.field(default_factory=Exact)
    kappa: float = 0.2
    theta: float = 1.0
    radius: float | None = None
    max_radius: float | None = None
    accept: float = 0.1
    regularization: float = 1e3
    inner: int | None = None

    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "hessian", HessianModel.from_spec(self.hessian))
        check_range("kappa", self.kappa, 0, 1, open_low=True, open_high=True)
        check_range("theta", self.theta, 0, 1)
        for name in ("radius", "max_radius"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), open_low=True)
        check_range("accept", self.accept, 0, POOR, open_high=True)
        check_range("regularization", self.regularization)
        if self.inner is not None:
            check_range("inner", self.inner, 1)

    @property
    def curvature(self) -> bool:
        """As the model of the Hessian has it."""
        return self.hessian.curvature

    def init(self, at: Iterate) -> State:
        """The first ball, and the units of function and gradient."""
        radius = self.radius or math.sqrt(at.size) / 8
        return {
            "radius": min(radius, self.max_radius or math.inf),
            "scale": abs(at.value),
            "norm": at.norm,
            "forcing": self.kappa,
        }

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """The model's minimiser, or the longest of ever shorter steps that is accepted."""
        radius, scale = state["radius"], max(state["scale"], abs(at.value))
        eta = forcing(at.norm, state["norm"], state["forcing"], 1 + self.theta, self.kappa)
        residual = max(eta * at.norm, at.problem.tolerance / 2)
        product = self.hessian.operator(at)
        path = truncated_cg(product, at.gradient, at.norm, radius, residual, self.inner or at.size)
        noise = self.regularization * torch.finfo(at.dtype).eps * scale
        for z, length, decrease in itertools.islice(path.steps(), TRIALS):
            if not length:
                raise Stop("products with the Hessian are not finite, or the square of the gradient is zero")
            to = at.move(z)
            ratio = (at.value - to.value + noise) / max(decrease + noise, 1e-300)
            if ratio > self.accept and to.finite:
                break
        else:
            raise Stop("no step decreases the function: rounding, or a gradient that is not its gradient")
        if z is not path.end.z:
            radius = length
        if ratio < POOR:
            radius = length / 4
        elif ratio > GOOD and length >= 0.999 * radius:
            radius = min(2 * radius, self.max_radius or math.inf)
        note = {"radius": radius, "inner": path.inner, "ratio": ratio, "ended": path.why}
        return to, {"radius": radius, "scale": scale, "norm": at.norm, "forcing": eta, "note": note}

    @classmethod
    def examples(cls) -> list[Method]:
        """Both ways to a Hessian; a small ball, inexact steps."""
        loose = cls(kappa=0.1, theta=0.5, radius=0.1, max_radius=1.0, accept=0.05, regularization=1e2, inner=10)
        return [cls(), cls(FiniteDifference()), loose]
