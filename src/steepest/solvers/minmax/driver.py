"""The loop around a method of `minmax`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import as_tuple
from steepest.solvers.base import State, Stop
from steepest.solvers.checkpoint import Checkpoint
from steepest.solvers.loop import MEND, PATIENCE, Journal, Limits, check_limits, mended, named, place, shown
from steepest.solvers.minmax.base import MinMaxMethod
from steepest.solvers.minmax.result import MinMaxResult
from steepest.solvers.minmax.saddle import Saddle
from steepest.solvers.problem import Iterate
from steepest.solvers.result import Record

Callback = Callable[[Record, Any, Any], Any]


def minmax(
    fun: Callable[..., Tensor],
    x0: Any,
    y0: Any,
    manifold_x: Manifold | None = None,
    manifold_y: Manifold | None = None,
    method: MinMaxMethod | str = "Hamiltonian",
    *,
    terms: int | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    max_evaluations: int | None = None,
    max_seconds: float | None = None,
    verbose: int = 0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
    seed: int = 0,
) -> MinMaxResult:
    """Find x and y at which fun(x, y) is stationary, lowest in x and highest in y where the method can tell.

    Args:
        fun: takes x and y (each a tensor, or a tuple of tensors where its manifold has several) and returns a tensor
            with one real number, made of torch operations. With `terms`, takes an index `(b,)` of integers as well, and
            returns the values `(b,)` of these terms.
        x0, y0: where to start, each on its manifold.
        manifold_x, manifold_y: where they live. None: anywhere, as plain tensors.
        method: an instance of a method of `steepest.solvers.minmax`, or its name.
        terms: how many terms f is the mean of, for methods that draw some of them.
        tolerance: of the Riemannian norm of the gradient, of both parts together.
        max_iterations, max_evaluations, max_seconds: where to stop at the latest; evaluations are those of values,
            gradients and products with the Hessian of f together (of a batch as well as of the whole sum).
        verbose: print every so many-th iteration.
        callback: called as `callback(record, x, y)` before the first and after each iteration; what is true ends the
            run.
        checkpoint: a file that the state is written to, every `checkpoint_every` seconds and at the end; a run that
            finds the file goes on from there, to the same numbers as if it had not been broken off.
        seed: of methods that draw random numbers. torch's own generator is never used.

    Returns:
        The pair with the smallest gradient and how it was found. Half precisions are computed in, and come back as,
        float32.

    Raises:
        ValueError: x0 or y0 is not on its manifold, the function is not finite there, the method does not fit, or the
            checkpoint is of another run.

    Han, Mishra, Jawanpuria and Gao 2023 (2204.11418), "Riemannian Hamiltonian methods for min-max optimization on
    manifolds".

    >>> from steepest import SPD, minmax
    >>> f = lambda x, y: x.logdet() * y.logdet()  # zero where both determinants are one
    >>> result = minmax(f, 2 * torch.eye(2), 3 * torch.eye(2), SPD(), SPD())
    >>> result.success, round(result.x.det().item(), 4)
    (True, 1.0)
    """
    started = time.perf_counter()
    method = named(MinMaxMethod, method)
    check_limits(tolerance, max_iterations, max_evaluations, max_seconds, checkpoint_every, verbose)
    check_range("terms", 1 if terms is None else terms, 1)
    manifold_x, x0 = place(manifold_x, x0)
    manifold_y, y0 = place(manifold_y, y0, "y0")
    _check_pair(manifold_x, x0, manifold_y, y0)
    saddle = Saddle(fun, manifold_x, manifold_y, terms, seed)
    problem = saddle.hamiltonian if method.energy else saddle.problem
    problem.curvature = method.curvature
    if fault := method.fault(saddle, problem.at((*as_tuple(x0), *as_tuple(y0)))):
        raise ValueError(f"method: {type(method).__name__} {fault}")
    keeper = Checkpoint(checkpoint, checkpoint_every, problem, method)
    at, state, history, before = keeper.load(x0) or _first(saddle, method, x0, y0)
    if method.energy:
        saddle.problem.evaluations.values = len(history)  # one for each record, which the file does not count
    run = _Run(saddle, method, history, started - before, verbose, callback)
    run.remember(state.pop("run", None))
    return run.loop(at, state, Limits(tolerance, max_iterations, max_evaluations, max_seconds), keeper)


def _check_pair(manifold_x: Manifold, x0: Any, manifold_y: Manifold, y0: Any) -> None:
    batches = [tuple(m.residual(t).shape) for m, t in ((manifold_x, x0), (manifold_y, y0))]
    try:
        torch.broadcast_shapes(*batches)
    except RuntimeError:
        raise ValueError(
            f"y0: its batch dimensions are {batches[1]}, those of x0 {batches[0]}; expected some that broadcast to "
            "each other. Give the smaller one dimensions of size one."
        ) from None
    kinds = {t.dtype if not t.is_complex() else t.real.dtype for t in (*as_tuple(x0), *as_tuple(y0))}
    if len(kinds) > 1:
        raise ValueError(f"y0: x0 and y0 have tensors of {sorted(map(str, kinds))}, expected one precision for all")


def _first(saddle: Saddle, method: MinMaxMethod, x0: Any, y0: Any) -> tuple[Iterate, State, list[Record], float]:
    z0 = (*as_tuple(x0), *as_tuple(y0))
    here = saddle.problem.at(z0)
    if not here.finite:
        raise ValueError(
            f"fun: its value at x0, y0 is {here.value}, its gradient {here.norm}; expected finite numbers. Start where "
            "the function and its derivative are defined."
        )
    at = saddle.hamiltonian.at(z0) if method.energy else here
    return at, {**method.init(saddle, at), "iteration": 0}, [], 0.0


class _Run(Journal):
    def __init__(
        self,
        saddle: Saddle,
        method: MinMaxMethod,
        history: list[Record],
        started: float,
        verbose: int,
        callback: Callback | None,
    ) -> None:
        super().__init__(history, started, verbose)
        self.saddle, self.method = saddle, method
        self.callback = callback
        self.best: tuple[float, Any] = (math.inf, None)
        self.idle = 0

    def loop(self, at: Iterate, state: State, limits: Limits, keeper: Checkpoint) -> MinMaxResult:
        """Steps until there is a reason to stop."""
        self._begin()
        end = self._look(at, state, limits)
        while end is None:
            try:
                at, state = self._step(at, state)
                if state["iteration"] % self.method.every == 0 or state["iteration"] >= limits.iterations:
                    end = self._look(at, state, limits)
            except Stop as stop:
                end = stop.reason, stop.converged
                break
            except torch.linalg.LinAlgError as error:
                end = f"a factorisation failed, shorter steps might converge: {error}", False
                break
            keeper.save(at, {**state, "run": self._memory()}, self.history, self._seconds(), False)
        keeper.save(at, {**state, "run": self._memory()}, self.history, self._seconds(), True)
        self._end(end[0])
        return self._result(at.x if self.best[1] is None else self.best[1], state["iteration"], end)

    def _step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        after, changed = self.method.step(self.saddle, at, state)
        state = {**changed, "iteration": state["iteration"] + 1}
        return mended(after, worse=None) if state["iteration"] % MEND == 0 else after, state

    def _result(self, z: Any, iterations: int, end: tuple[str, bool]) -> MinMaxResult:
        saddle, evaluations = self.saddle, self.saddle.evaluations
        there = saddle.problem.at(z)
        norm_x, norm_y = (float(torch.linalg.vector_norm(g)) for g in saddle.parts(there, there.gradient))
        x, y = saddle.pair(there.x)
        return MinMaxResult(
            x,
            y,
            there.value,
            there.norm,
            norm_x,
            norm_y,
            iterations,
            evaluations,
            self._seconds(),
            *end,
            self.history,
            self.method,
        )

    def _look(self, at: Iterate, state: State, limits: Limits) -> tuple[str, bool] | None:
        """Write the history, and see whether there is a reason to stop."""
        if self.method.energy:
            value, norm = self.saddle.problem.value(at.x), math.sqrt(2 * at.value)
        else:
            value, norm = at.value, at.norm
        count, note = self.saddle.evaluations.total, shown(state.get("note", {}))
        record = Record(state["iteration"], value, norm, self._seconds(), count, note)
        fresh = self._write(record)
        if not (math.isfinite(value) and math.isfinite(norm)):
            return "value or gradient is not finite any more: shorter steps might converge", False
        if fresh or self.best[1] is None:  # a run that goes on looks at its first point again
            self._judge(norm, at.x)
        if self.callback is not None and self.callback(record, *self.saddle.pair(at.x)):
            return "the callback ended it", False
        return limits.reason(record) or self._idle()

    def _judge(self, norm: float, x: Any) -> None:
        """Whether it is the best pair so far, and for how long none has been better by more than rounding."""
        self.idle = 0 if norm < self.best[0] * (1 - 1e-9) else self.idle + 1
        if norm <= self.best[0]:
            self.best = norm, x

    def _idle(self) -> tuple[str, bool] | None:
        """Whether a method that descends on the norm has ceased to."""
        if not self.method.energy or self.idle < PATIENCE:
            return None
        return (
            f"the gradient did not get smaller in {PATIENCE} iterations: rounding, or a point where the Hessian times "
            "the gradient vanishes"
        ), False

    def _memory(self) -> State:
        """What a run that goes on has to know of the steps before."""
        norm, x = self.best
        return {"norm": norm, "best": None if x is None else list(x), "idle": self.idle}

    def remember(self, memory: State | None) -> None:
        """The same, from a checkpoint."""
        if memory and memory["best"] is not None:
            self.best, self.idle = (memory["norm"], tuple(memory["best"])), memory["idle"]
