"""The loop around a method: when to stop, what to say, what to keep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import as_tuple, like
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.checkpoint import Checkpoint
from steepest.solvers.line_search import rounding
from steepest.solvers.loop import MEND, PATIENCE, Journal, Limits, check_limits, mended, named, place, shown
from steepest.solvers.problem import Function, Iterate, Problem
from steepest.solvers.result import Record, Result

Callback = Callable[[Record, Any], Any]


def minimize(
    fun: Function,
    x0: Any,
    manifold: Manifold | None = None,
    method: Method | str = "LBFGS",
    *,
    gradient: Callable[[Any], Any] | None = None,
    hvp: Callable[[Any, Any], Any] | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    max_evaluations: int | None = None,
    max_seconds: float | None = None,
    verbose: int = 0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
    seed: int = 0,
) -> Result:
    """Minimise a function on a manifold, from a point on.

    Args:
        fun: takes a point (a tensor, or a tuple of tensors where the manifold has several) and returns a tensor with
            one real number. Where it is infinite or NaN, it counts as too high.
        x0: where to start, on the manifold. Leading batch dimensions make a product of manifolds.
        manifold: where x lives. None: anywhere, as a plain tensor (or tuple of tensors).
        method: an instance from `steepest.solvers`, or the name of one, in any case and with or without underscores.
        gradient: point -> Euclidean gradient. None: by autograd.
        hvp: (point, tangent vector) -> Euclidean Hessian times it. None: by autograd.
        tolerance: of the Riemannian norm of the gradient.
        max_iterations, max_evaluations, max_seconds: where to stop at the latest; evaluations are those of values,
            gradients and products with the Hessian together.
        verbose: print every so many-th iteration.
        callback: called as `callback(record, x)` before the first and after each iteration; what is true ends the run.
        checkpoint: a file that the state is written to, every `checkpoint_every` seconds and at the end; a run that
            finds the file goes on from there, to the same numbers as if it had not been broken off.
        seed: of methods that draw random numbers. torch's own generator is never used.

    Returns:
        The best point and how it was found. Half precisions are computed in, and come back as, float32.

    Raises:
        ValueError: x0 is not on the manifold, the function is not finite there, the method does not fit, or the
            checkpoint is of another run.
        TypeError: x0 is not made of tensors, or `fun` does not return what it should.

    Absil, Mahony and Sepulchre 2008, "Optimization Algorithms on Matrix Manifolds"; Boumal 2023, "An Introduction to
    Optimization on Smooth Manifolds".

    >>> from steepest import Stiefel, minimize
    >>> a = torch.diag(torch.arange(6.0))
    >>> result = minimize(lambda x: -(x.T @ a @ x).trace(), Stiefel().random_point((6, 2)), Stiefel(), "TrustRegion")
    >>> round(result.value, 4), result.success
    (-9.0, True)
    """
    started = time.perf_counter()
    method = named(Method, method)
    manifold, x0 = place(manifold, x0)
    check_limits(tolerance, max_iterations, max_evaluations, max_seconds, checkpoint_every, verbose)
    if fault := method.fault(manifold, x0):
        raise ValueError(f"method: {type(method).__name__} {fault}")
    problem = Problem(fun, manifold, gradient, hvp, seed)
    problem.curvature, problem.derivatives = method.curvature, method.order > 0
    problem.tolerance = tolerance
    keeper = Checkpoint(checkpoint, checkpoint_every, problem, method)
    at, state, history, before = keeper.load(x0) or _first(problem, method, x0)
    run = _Run(problem, method, history, before, started, verbose, callback)
    run.remember(state.pop("run", None), x0)
    return run.loop(at, state, Limits(tolerance, max_iterations, max_evaluations, max_seconds), keeper)


class _Run(Journal):
    def __init__(
        self,
        problem: Problem,
        method: Method,
        history: list[Record],
        before: float,
        started: float,
        verbose: int,
        callback: Callback | None,
    ) -> None:
        super().__init__(history, started - before, verbose)
        self.problem, self.method = problem, method
        self.callback = callback
        self.best: Iterate | None = None
        self.lowest = self.flattest = math.inf
        self.idle = 0

    def loop(self, at: Iterate, state: State, limits: Limits, keeper: Checkpoint) -> Result:
        """Steps until there is a reason to stop."""
        self._begin()
        end = self._look(at, state, limits)
        while end is None:
            try:
                after, changed = self.method.step(at, state)
            except Stop as stop:
                end = stop.reason, stop.converged
                break
            at, state = after, {**changed, "iteration": state["iteration"] + 1}
            if state["iteration"] % MEND == 0:
                at = mended(at)
            end = self._look(at, state, limits)
            keeper.save(at, {**state, "run": self._memory()}, self.history, self._seconds(), False)
        seconds = self._seconds()
        keeper.save(at, {**state, "run": self._memory()}, self.history, seconds, True)
        self._end(end[0])
        best = self._answer(at, end[1], limits)
        norm = best.norm if self.method.order else math.nan
        return Result(
            best.x,
            best.value,
            norm,
            state["iteration"],
            self.problem.evaluations,
            seconds,
            *end,
            self.history,
            self.method,
        )

    def _look(self, at: Iterate, state: State, limits: Limits) -> tuple[str, bool] | None:
        """Write the history, and see whether there is a reason to stop."""
        norm = at.norm if self.method.order else math.nan
        count, note = self.problem.evaluations.total, shown(state.get("note", {}))
        record = Record(state["iteration"], at.value, norm, self._seconds(), count, note)
        fresh = self._write(record)
        if record.value == -math.inf:
            return "the function is unbounded below", False
        if self.method.order and not math.isfinite(norm):
            return "the gradient is not finite at a point where the function is", False
        if fresh or self.best is None:  # a run that goes on looks at its first point again
            self._judge(at, record)
        if self.callback is not None and self.callback(record, at.x):
            return "the callback ended it", False
        return limits.reason(record) or self._idle()

    def _judge(self, at: Iterate, record: Record) -> None:
        """Whether it is the best point so far, and for how long nothing has changed but by rounding."""
        if self._better(at):
            self.best = at
        lower = not record.value >= self.lowest - 1e-16 * abs(self.lowest)
        flatter = record.gradient_norm < 0.9 * self.flattest
        self.lowest, self.flattest = min(self.lowest, record.value), min(self.flattest, record.gradient_norm)
        self.idle = 0 if lower or flatter else self.idle + 1

    def _better(self, at: Iterate) -> bool:
        """Whether it is the best point so far: of values that rounding may have made different, the one with the
        smaller gradient."""
        if self.best is None or not self.method.order:
            return self.best is None or at.value <= self.best.value
        noise = rounding(at)
        return at.value < self.lowest - noise or (at.value <= self.lowest + noise and at.norm < self.best.norm)

    def _idle(self) -> tuple[str, bool] | None:
        # the best of a population may wait for long, and the method tells when it is over
        if not self.method.steady or self.idle < PATIENCE:
            return None
        why = "rounding, or steps that are too long"
        return f"neither value nor gradient went down in {PATIENCE} iterations: {why}", False

    def _answer(self, at: Iterate, success: bool, limits: Limits) -> Iterate:
        """The best point; where that one's gradient is longer than was asked for and the last one's is not, the last:
        values need not fall from each step to the next."""
        best, tolerance = self.best or at, limits.tolerance or 0.0
        if success and self.method.order and at.norm <= tolerance < best.norm:
            best = at
        return mended(best, 100, None)

    def _memory(self) -> State:
        """What a run that goes on has to know of the steps before."""
        if self.best is None:
            return {}
        best = {"value": self.best.value, "norm": self.best.norm if self.method.order else math.nan}
        numbers = {"lowest": self.lowest, "flattest": self.flattest, "idle": self.idle}
        return {"best": list(as_tuple(self.best.x)), "known": best, **numbers}

    def remember(self, memory: State | None, x: Any) -> None:
        """The same, from a checkpoint; x is a point of the same kind."""
        if not memory:
            return
        self.best = self.problem.at(like(x, memory["best"]))
        self.best.__dict__.update(memory["known"])  # so that nothing is computed again
        self.lowest, self.flattest, self.idle = (memory[name] for name in ("lowest", "flattest", "idle"))


def _first(problem: Problem, method: Method, x0: Any) -> tuple[Iterate, State, list[Record], float]:
    at = problem.at(x0)
    if not math.isfinite(at.value) or (method.order and not at.finite):
        raise ValueError(
            f"fun: its value at x0 is {at.value}{f', its gradient {at.norm}' if method.order else ''}; expected finite "
            "numbers. Start where the function and its derivative are defined."
        )
    if method.order and problem.given_gradient is None and not at.tracked:
        raise TypeError(
            "fun: its value at x0 does not depend on x0 through operations that torch can differentiate (numpy, "
            "`detach`, `no_grad`, `inference_mode`?). Give `gradient`, or take a method without derivatives, such as "
            "NelderMead or ParticleSwarm."
        )
    return at, {**method.init(at), "iteration": 0}, [], 0.0
