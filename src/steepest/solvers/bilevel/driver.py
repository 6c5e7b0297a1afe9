"""The loop around a method of `bilevel`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import each
from steepest.solvers.base import Stop
from steepest.solvers.bilevel.base import BilevelMethod, Standing
from steepest.solvers.bilevel.levels import Function, Levels
from steepest.solvers.bilevel.result import BilevelResult
from steepest.solvers.loop import PATIENCE, Journal, Limits, check_limits, named, place, shown
from steepest.solvers.result import Record

Callback = Callable[[Record, Any, Any], Any]


def bilevel(
    upper: Function,
    lower: Function,
    x0: Any,
    y0: Any,
    manifold_x: Manifold | None = None,
    manifold_y: Manifold | None = None,
    method: BilevelMethod | str = "RHGD",
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 200,
    max_seconds: float | None = None,
    verbose: int = 0,
    callback: Callback | None = None,
    seed: int = 0,
) -> BilevelResult:
    """Minimise f(x, y(x)) over x, where y(x) minimises g(x, .), both on manifolds.

    g(x, .) must have a positive definite Riemannian Hessian at its minimum, which is the one that descent from y0 leads
    to.

    Args:
        upper: f; takes x and y (each a tensor, or a tuple of tensors where its manifold has several) and returns a
            tensor with one real number, made of torch operations.
        lower: g, likewise.
        x0, y0: where to start, each on its manifold; y0 need not be near the minimum.
        manifold_x, manifold_y: where they live. None: anywhere, as plain tensors.
        method: an instance of a method of `steepest.solvers.bilevel`, or its name.
        tolerance: of the Riemannian norms of the hypergradient and of grad_y g. The estimates' own error bounds what
            can be reached.
        max_iterations, max_seconds: where to stop at the latest.
        verbose: print every so many-th iteration.
        callback: called as `callback(record, x, y)` before the first and after each iteration; what is true ends the
            run.
        seed: of what is random, in methods and in error estimates. torch's own generator is never used.

    Returns:
        The pair with the smallest gradients and how it was found; the history's values are those of f, its
        evaluations those of both functions, and its notes tell the "lower" gradient norm.

    Raises:
        ValueError: x0 or y0 is not on its manifold, or a function is not finite there.

    Han, Mishra, Jawanpuria and Takeda 2024 (2402.03883), "A framework for bilevel optimization on Riemannian
    manifolds".

    >>> from steepest import SPD, bilevel
    >>> upper = lambda x, y: (y.det() - 2) ** 2
    >>> lower = lambda x, y: (y @ torch.diag(x.exp())).trace() - y.logdet()  # minimal at diag(exp(-x))
    >>> result = bilevel(upper, lower, torch.zeros(2), torch.eye(2), None, SPD())
    >>> result.success, round(result.y.det().item(), 3)
    (True, 2.0)
    """
    started = time.perf_counter()
    method = named(BilevelMethod, method)
    check_limits(tolerance, max_iterations, seconds=max_seconds, verbose=verbose)
    manifold_x, x0 = place(manifold_x, x0)
    manifold_y, y0 = place(manifold_y, y0, "y0")
    levels = Levels(upper, lower, manifold_x, manifold_y, seed)
    _check_start(levels, x0, y0)
    limits = Limits(tolerance, max_iterations, seconds=max_seconds)
    return _Run(levels, method, started, verbose, callback).loop(x0, y0, limits)


def _check_start(levels: Levels, x0: Any, y0: Any) -> None:
    values = levels.value(x0, y0), levels.problem(x0).value(y0)
    for name, value in zip(("upper", "lower"), values, strict=True):
        if not math.isfinite(value):
            raise ValueError(
                f"{name}: its value at x0, y0 is {value}, expected a finite number. Start where the functions are "
                "defined."
            )


class _Run(Journal):
    def __init__(
        self, levels: Levels, method: BilevelMethod, started: float, verbose: int, callback: Callback | None
    ) -> None:
        super().__init__([], started, verbose)
        self.levels, self.method = levels, method
        self.callback = callback
        self.best: Standing | None = None
        self.lowest = self.flattest = math.inf
        self.idle = 0

    def loop(self, x0: Any, y0: Any, limits: Limits) -> BilevelResult:
        """Steps until there is a reason to stop."""
        self._begin()
        end: tuple[str, bool] | None = None
        walk = self.method.walk(self.levels, x0, y0)
        while end is None:
            try:
                end = self._look(next(walk), limits)
            except Stop as stop:
                end = stop.reason, stop.converged
            except torch.linalg.LinAlgError as error:
                end = f"a factorisation failed, shorter steps might converge: {error}", False
        self._end(end[0])
        return self._result(end)

    def _look(self, here: Standing, limits: Limits) -> tuple[str, bool] | None:
        """Write the history, and see whether there is a reason to stop."""
        note = shown(here.note) | {"lower": here.lower_norm}
        total = self.levels.above.total + self.levels.below.total
        record = Record(len(self.history), here.value, here.norm, self._seconds(), total, note)
        self._write(record)
        norm = max(here.norm, here.lower_norm)
        if norm <= self.flattest:
            self.best, self.flattest = here, norm
        if self.best is None:
            raise ValueError(
                f"upper, lower: at x0, y0 the hypergradient's norm is {here.norm}, the lower gradient's "
                f"{here.lower_norm}; expected finite numbers. Start where the lower function has a Hessian that can be "
                "inverted, and both functions have derivatives."
            )
        if not (math.isfinite(here.value) and math.isfinite(here.norm)):
            return "value or hypergradient is not finite: shorter steps might converge", False
        if self.callback is not None and self.callback(record, here.x, here.y):
            return "the callback ended it", False
        return limits.reason(record._replace(gradient_norm=norm)) or self._idle(here)

    def _idle(self, here: Standing) -> tuple[str, bool] | None:
        """Whether nothing gets better any more."""
        if not self.method.descends:
            return None
        better = here.value < self.lowest - 1e-16 * abs(self.lowest) or here is self.best
        self.lowest = min(self.lowest, here.value)
        self.idle = 0 if better else self.idle + 1
        if self.idle < PATIENCE:
            return None
        return f"neither value nor hypergradient went down in {PATIENCE} iterations: the estimates' error", False

    def _result(self, end: tuple[str, bool]) -> BilevelResult:
        best, levels = self.best, self.levels
        assert best is not None  # the start, which is refused where a gradient is not finite
        above, below = (type(e)(**vars(e)) for e in (levels.above, levels.below))
        estimator = self.method.hypergradient
        pair = levels.at(best.x, best.y)
        estimate = best.estimate or estimator.estimate(pair)
        gap = pair.length(each(torch.sub, best.covector, estimate.covector))
        return BilevelResult(
            best.x,
            best.y,
            best.value,
            best.norm,
            gap + estimator.error(pair, estimate),
            best.lower_norm,
            len(self.history) - 1,
            above,
            below,
            self._seconds(),
            *end,
            self.history,
            self.method,
        )
