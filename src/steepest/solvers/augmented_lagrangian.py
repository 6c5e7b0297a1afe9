"""The augmented Lagrangian method."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.constrained import ConstrainedMethod, ConstrainedProblem
from steepest.solvers.loop import named
from steepest.solvers.minimize import minimize


@dataclasses.dataclass(frozen=True)
class AugmentedLagrangian(ConstrainedMethod):
    """Minimises, one after the other, f + rho/2 (|c + lambda/rho|^2 + |max(0, d + mu/rho)|^2) over the manifold.

    After each, lambda becomes lambda + rho c and mu becomes max(0, mu + rho d), both clipped; rho grows where neither
    the constraints nor complementarity have improved enough, max(|c|, |max(d, -mu/rho)|) <= `improvement` times the
    last. The multipliers in the result are those before clipping, with which the Lagrangian's gradient is that of the
    last function that was minimised.

    Args:
        inner: the method of `minimize` that minimises them, or its name. Their second derivatives jump where an
            inequality begins to hold.
        penalty: the first rho.
        growth: of rho.
        improvement: of the constraints, that leaves rho as it is.
        accuracy: the first inner tolerance; it falls to the tolerance asked for by the factor `tightening`.
        tightening: of the inner tolerance.
        inner_iterations: for each of them, at most.
        bound: largest multiplier that is kept, in size.

    Liu and Boumal 2019, "Simple algorithms for optimization on Riemannian manifolds with constraints" (1901.10000),
    algorithm 1. Its constants were not checked against the authors' code, and two were chosen: `bound`, as a hundred
    would make a penalty method of it where a multiplier is larger, and `tightening`.

    >>> from steepest import Sphere
    >>> from steepest.solvers import AugmentedLagrangian, minimize_constrained
    >>> method = AugmentedLagrangian(inner="TrustRegion")
    >>> x0 = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    >>> result = minimize_constrained(lambda x: x[0], x0, Sphere(), lambda x: x.sum(), method=method)
    >>> result.x.numpy().round(3), round(result.equality_multipliers.item(), 3)
    (array([-0.816,  0.408,  0.408]), -0.333)
    """

    inner: Method | str = "LBFGS"
    penalty: float = 1.0
    growth: float = 1 / 0.3
    improvement: float = 0.8
    accuracy: float = 1e-3
    tightening: float = 0.3
    inner_iterations: int = 500
    bound: float = 1e6

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", named(Method, self.inner, "inner"))
        check_range("penalty", self.penalty, open_low=True)
        check_range("growth", self.growth, 1, open_low=True)
        check_range("improvement", self.improvement, 0, 1, open_high=True)
        check_range("accuracy", self.accuracy, open_low=True)
        check_range("tightening", self.tightening, 0, 1, open_low=True, open_high=True)
        check_range("inner_iterations", self.inner_iterations, 1)
        check_range("bound", self.bound, open_low=True)

    def init(self, problem: ConstrainedProblem, x: Any, c: Tensor, d: Tensor) -> State:
        """Multipliers of zero."""
        zero = {"equality": torch.zeros_like(c), "inequality": torch.zeros_like(d)}
        return {**zero, "penalty": self.penalty, "accuracy": max(self.accuracy, problem.tolerance), "worst": None}

    def step(self, problem: ConstrainedProblem, x: Any, state: State) -> tuple[Any, State]:
        """One inner minimisation, and new multipliers."""
        rho = state["penalty"]
        if rho > MOST:
            raise Stop(f"the penalty has grown to {rho:.1g}: the constraints seem to have no point in common near x")
        equality, inequality = (state[k].clamp(-self.bound, self.bound) for k in ("equality", "inequality"))
        result = minimize(
            _augmented(problem, equality, inequality, rho),
            x,
            problem.manifold,
            self.inner,
            tolerance=state["accuracy"],
            max_iterations=self.inner_iterations,
            max_seconds=problem.seconds_left(),
            max_evaluations=problem.evaluations_left(),
            seed=problem.seed,
        )
        problem.inner += result.iterations
        for name, number in vars(result.evaluations).items():
            setattr(problem.evaluations, name, getattr(problem.evaluations, name) + number)
        with torch.no_grad():
            c, d = problem.equalities(result.x), problem.inequalities(result.x)
        worst = float(torch.cat([c.abs(), torch.maximum(d, -inequality / rho).abs()]).max())
        enough = state["worst"] is None or worst <= self.improvement * state["worst"]
        return result.x, {
            "equality": equality + rho * c,
            "inequality": (inequality + rho * d).clamp_min(0),
            "penalty": rho if enough else self.growth * rho,
            "accuracy": max(self.tightening * state["accuracy"], problem.tolerance / 2),
            "worst": worst,
            "note": {"penalty": rho, "inner": result.iterations},
        }

    @classmethod
    def examples(cls) -> list[ConstrainedMethod]:
        """With first and with second derivatives."""
        return [cls(), cls(inner="NystromNewton")]


MOST = 1e14
"""Largest penalty with which an inner problem is tried."""


def _augmented(problem: ConstrainedProblem, equality: Tensor, inequality: Tensor, rho: float) -> Any:
    """f with the constraints' part, less the constant terms."""

    def fun(x: Any) -> Tensor:
        value = problem.fun(x)
        if len(equality):
            c = problem.equalities(x)
            value = value + equality @ c + rho / 2 * c @ c
        if len(inequality):
            d = (inequality + rho * problem.inequalities(x)).clamp_min(0)
            value = value + (d @ d - inequality @ inequality) / (2 * rho)
        return value

    return fun
