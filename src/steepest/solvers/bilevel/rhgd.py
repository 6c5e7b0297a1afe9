"""Descent on the upper function of the lower one's minimum."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.tensors import as_tuple
from steepest.solvers.base import Method
from steepest.solvers.bilevel.base import BilevelMethod, Standing
from steepest.solvers.bilevel.cg import CG
from steepest.solvers.bilevel.hypergradient import Estimate, Hypergradient
from steepest.solvers.bilevel.levels import Levels, Pair
from steepest.solvers.bilevel.unrolled import Unrolled
from steepest.solvers.loop import named
from steepest.solvers.minimize import minimize
from steepest.solvers.problem import Iterate, Problem
from steepest.solvers.steepest_descent import SteepestDescent


@dataclasses.dataclass(frozen=True)
class RHGD(BilevelMethod):
    """Minimise F(x) = f(x, y(x)) by any method of `minimize`, with a hypergradient for the gradient, and y(x) found by
    any method too, from the y of the last accepted step.

    Args:
        hypergradient: the estimator.
        outer: the method for x, of first order, or its name. A line search on F solves the lower level at every trial;
            `SteepestDescent(FixedStep(t), barzilai_borwein=False)` does not search, as in the paper.
        lower: the method for y, or its name. `Unrolled` takes steps of its own instead.
        lower_iterations: of `lower`, at most.
        lower_tolerance: of the Riemannian norm of grad_y g. Values of F are corrected for what is left of it, to first
            order; a tolerance well below that of the hypergradient serves the line search.

    Han, Mishra, Jawanpuria and Takeda 2024 (2402.03883), algorithm 1, RHGD: there, fixed steps at both levels.

    >>> from steepest.solvers import CG, RHGD, bilevel
    >>> upper, lower = lambda x, y: (y - 1).square().sum(), lambda x, y: (y - x.exp()).square().sum()
    >>> method = RHGD(CG(5), outer="LBFGS", lower="SteepestDescent")
    >>> bilevel(upper, lower, torch.ones(2), torch.ones(2), method=method).success
    True
    """

    hypergradient: Hypergradient = dataclasses.field(default_factory=CG)
    outer: Method | str = dataclasses.field(default_factory=SteepestDescent)
    lower: Method | str = "LBFGS"
    lower_iterations: int = 200
    lower_tolerance: float = 1e-8

    def __post_init__(self) -> None:
        object.__setattr__(self, "hypergradient", Hypergradient.from_spec(self.hypergradient))
        for name in ("outer", "lower"):
            object.__setattr__(self, name, named(Method, getattr(self, name), name))
        if self._outer.order != 1:
            raise ValueError(f"outer: {type(self.outer).__name__} is of order {self._outer.order}, expected one of 1")
        check_range("lower_iterations", self.lower_iterations, 1)
        check_range("lower_tolerance", self.lower_tolerance)

    @property
    def _outer(self) -> Method:
        assert isinstance(self.outer, Method)
        return self.outer

    def walk(self, levels: Levels, x: Any, y: Any) -> Iterator[Standing]:
        """Steps of the outer method on F."""
        reduced = Reduced(levels, self, y)
        outer = self._outer
        if fault := outer.fault(levels.manifold_x, x):
            raise ValueError(f"outer: {type(outer).__name__} {fault}")
        at = reduced.problem.at(x)
        state = {**outer.init(at), "iteration": 0}
        while True:
            value, norm = at.value, at.norm
            end, estimate = reduced.estimate(at.x)
            note = state.get("note", {})
            yield Standing(at.x, end.y, value, norm, end.below.norm, estimate.covector, estimate, note)
            reduced.advance(at.x)
            at, changed = outer.step(at, state)
            state = {**changed, "iteration": state["iteration"] + 1}

    @classmethod
    def examples(cls) -> list[BilevelMethod]:
        """A line search and a quasi-Newton method."""
        return [cls(), cls(Unrolled(40, 0.8)), cls(outer="LBFGS", lower="SteepestDescent")]


class Reduced:
    """F(x) = f(x, y(x)), with y(x) found from one start, which is that of the last accepted step."""

    def __init__(self, levels: Levels, method: RHGD, start: Any) -> None:
        self.levels, self.method, self.start = levels, method, start
        self.problem = Problem(self._value, levels.manifold_x, lambda x: self.estimate(x)[1].covector, seed=levels.seed)
        self._adjoint: tuple[Iterate, Tensor] | None = None
        self._found: list[tuple[Any, Any]] = []
        self._estimated: tuple[Any, tuple[Pair, Estimate]] | None = None

    def advance(self, x: Any) -> None:
        """From here on, start from y(x)."""
        end, estimate = self.estimate(x)
        self.start, self._found = end.y, []
        if estimate.adjoint is not None:
            self._adjoint = end.below, estimate.adjoint

    def follow(self, x: Any) -> Any:
        """y(x), None where g is not finite at the start."""
        for known, y in self._found:
            if _same(known, x):
                return y
        y = self._solved(x)
        self._found.append((x, y))
        return y

    def estimate(self, x: Any) -> tuple[Pair, Estimate]:
        """Both levels at x and y(x), and the hypergradient there."""
        if self._estimated is None or not _same(self._estimated[0], x):
            rule = self.method.hypergradient
            # what is differentiated through steps begins where these do
            pair = self.levels.at(x, self.start if rule.unrolls else self.follow(x))
            estimate = rule.estimate(pair)
            self._estimated = x, (self.levels.at(x, estimate.y) if rule.unrolls else pair, estimate)
        return self._estimated[1]

    def _value(self, x: Any) -> Tensor:
        """f(x, y), less what y's distance from the minimum adds to it, <v, grad_y g> in first order, with the v of the
        last step: a line search compares values, and without this their errors would be those of y."""
        y = self.follow(x)
        value = math.inf if y is None else self.levels.value(x, y)
        if self._adjoint is not None and math.isfinite(value):
            before, v = self._adjoint
            here = self.levels.problem(x).at(y)
            value -= float(before.carry(v, here) @ here.gradient)
        return torch.tensor(value, dtype=torch.float64)

    def _solved(self, x: Any) -> Any:
        method, levels = self.method, self.levels
        if isinstance(method.hypergradient, Unrolled):
            return method.hypergradient.descend(levels, x, self.start, False)
        problem = levels.problem(x)
        if not math.isfinite(problem.value(self.start)):
            return None
        found = minimize(
            problem.fun,
            self.start,
            levels.manifold_y,
            method.lower,
            tolerance=method.lower_tolerance,
            max_iterations=method.lower_iterations,
            seed=levels.seed,
        )
        e, below = found.evaluations, levels.below
        below.values, below.gradients = below.values + e.values, below.gradients + e.gradients
        below.products += e.products
        return found.x


def _same(x: Any, y: Any) -> bool:
    return all(a is b or torch.equal(a, b) for a, b in zip(as_tuple(x), as_tuple(y), strict=True))
