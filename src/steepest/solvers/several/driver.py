"""Descent on several objectives at once."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.solvers.base import State, Stop
from steepest.solvers.checkpoint import Checkpoint
from steepest.solvers.coordinate_descent import armijo
from steepest.solvers.line_search import Armijo
from steepest.solvers.loop import MEND, Journal, Limits, check_limits, mended, named, place
from steepest.solvers.problem import Iterate
from steepest.solvers.result import Record, Result
from steepest.solvers.several.base import Aggregator, safe_gram
from steepest.solvers.several.cone import least_norm
from steepest.solvers.several.objectives import Functions, Objectives
from steepest.solvers.several.surgery import UPGrad


@dataclasses.dataclass(frozen=True)
class SeveralResult(Result):
    """What `minimize_several` returns: as `Result`, in which `value` is the mean of the objectives and `gradient_norm`
    the length of the shortest convex combination of their gradients, with

    >>> from steepest.solvers import minimize_several
    >>> result = minimize_several(lambda x: torch.stack([(x**2).sum(), ((x - 1) ** 2).sum()]), torch.full((2,), 3.0))
    >>> result.success, sum(result.weights).__round__(6)
    (True, 1.0)
    """

    values: list[float]
    """Of the objectives."""
    weights: list[float]
    """Of that combination: multipliers that prove x to be Pareto stationary."""


@dataclasses.dataclass
class _Place:
    """A point, with what is known of the objectives there."""

    at: Iterate
    values: Tensor
    jacobian: Tensor

    def __post_init__(self) -> None:
        self.gram = safe_gram(self.jacobian.cpu().double())
        self.weights = least_norm(self.gram)
        self.norm = float(self.combined(self.weights).norm())

    def combined(self, weights: Tensor) -> Tensor:
        """J^T w, `(n,)`."""
        return (weights @ self.jacobian.cpu().double()).to(self.jacobian)


def minimize_several(
    functions: Functions,
    x0: Any,
    manifold: Manifold | None = None,
    aggregator: Aggregator | str | None = None,
    *,
    line_search: Armijo | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    max_seconds: float | None = None,
    verbose: int = 0,
    callback: Callable[[Record, Any], Any] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
    seed: int = 0,
) -> SeveralResult:
    """Lower all of several functions on a manifold, from a point on, until none can be lowered without raising another.

    A step goes along minus the aggregator's direction as far as every objective decreases as Armijo's rule asks; the
    length tried first is that of Barzilai and Borwein for the combination of objectives that the direction is. Where
    the direction lowers some objective not at all, or no step is found, the shortest convex combination of the
    gradients takes its place (`MGDA`), which lowers all: so every aggregator ends at a Pareto stationary point, and
    they differ in which.

    Args:
        functions: one that takes a point and returns all values, `(m,)`; or a sequence of functions, each of which
            returns one number. Where one is infinite or NaN, it counts as too high.
        x0: where to start, on the manifold. Leading batch dimensions make a product of manifolds.
        manifold: where x lives. None: anywhere, as a plain tensor (or tuple of tensors).
        aggregator: an instance from `steepest.solvers`, or the name of one. None: `UPGrad()`.
        line_search: Armijo's constants; the step is shortened by the factor `contraction`.
        tolerance: of the length of the shortest convex combination of the gradients.
        max_iterations, max_seconds: where to stop at the latest.
        verbose: print every so many-th iteration.
        callback: called as `callback(record, x)` before the first and after each iteration; what is true ends the run.
        checkpoint: a file that the state is written to, every `checkpoint_every` seconds and at the end; a run that
            finds the file goes on from there, to the same numbers as if it had not been broken off.
        seed: of aggregators that draw random numbers. torch's own generator is never used.

    Returns:
        The last point, which is the best in every objective. The notes of the history hold all values, "f0" and so on.

    Raises:
        ValueError: x0 is not on the manifold, an objective is not finite there, or the checkpoint is of another run.

    Fliege and Svaiter 2000, "Steepest descent methods for multicriteria optimization", for the search; Quinton and Rey
    2024 (2406.16232) for aggregators.

    >>> from steepest import Sphere
    >>> from steepest.solvers import minimize_several
    >>> a, b = torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.diag(torch.tensor([2.0, 1.0, 3.0]))
    >>> x0 = torch.tensor([0.48, 0.6, 0.64])
    >>> result = minimize_several([lambda x: x @ a @ x, lambda x: x @ b @ x], x0, Sphere(), tolerance=1e-3)
    >>> result.success, abs(result.x[2].item()) < 1e-2
    (True, True)
    """
    started = time.perf_counter()
    aggregator = UPGrad() if aggregator is None else named(Aggregator, aggregator, "aggregator")
    rule = Armijo() if line_search is None else armijo(line_search)
    manifold, x0 = place(manifold, x0)
    check_limits(tolerance, max_iterations, None, max_seconds, checkpoint_every, verbose)
    problem = Objectives(functions, manifold, seed)
    keeper = Checkpoint(checkpoint, checkpoint_every, problem, aggregator)
    at, state, history, before = keeper.load(x0) or (problem.at(x0), State(iteration=0), [], 0.0)
    counted = dataclasses.replace(problem.evaluations)
    here = _known(problem, at)
    if history:
        problem.evaluations = counted
    measure = "Pareto stationary: the length of a convex combination of the gradients"
    limits = Limits(tolerance, max_iterations, seconds=max_seconds, measure=measure)
    return _Run(problem, aggregator, rule, history, started - before, verbose, callback).loop(
        here, state, limits, keeper
    )


class _Run(Journal):
    def __init__(
        self,
        problem: Objectives,
        aggregator: Aggregator,
        rule: Armijo,
        history: list[Record],
        started: float,
        verbose: int,
        callback: Callable[[Record, Any], Any] | None,
    ) -> None:
        super().__init__(history, started, verbose)
        self.problem, self.aggregator, self.rule = problem, aggregator, rule
        self.callback = callback

    def loop(self, here: _Place, state: State, limits: Limits, keeper: Checkpoint) -> SeveralResult:
        """Steps until there is a reason to stop."""
        self._begin()
        end = self._look(here, state, limits)
        while end is None:
            try:
                here, state = self._step(here, state)
            except Stop as stop:
                end = stop.reason, stop.converged
                break
            end = self._look(here, state, limits)
            keeper.save(here.at, state, self.history, self._seconds(), False)
        keeper.save(here.at, state, self.history, self._seconds(), True)
        self._end(end[0])
        return self._result(here, state["iteration"], end)

    def _result(self, here: _Place, iterations: int, end: tuple[str, bool]) -> SeveralResult:
        return SeveralResult(
            here.at.x,
            float(here.values.mean()),
            here.norm,
            iterations,
            self.problem.evaluations,
            self._seconds(),
            *end,
            self.history,
            self.aggregator,
            here.values.tolist(),
            here.weights.tolist(),
        )

    def _look(self, here: _Place, state: State, limits: Limits) -> tuple[str, bool] | None:
        """Write the history, and see whether there is a reason to stop."""
        note = {f"f{i}": v for i, v in enumerate(here.values.tolist())} | {"step": state.get("length", 0.0)}
        mean, count = float(here.values.mean()), self.problem.evaluations.total
        record = Record(state["iteration"], mean, here.norm, self._seconds(), count, note)
        self._write(record)
        if self.callback is not None and self.callback(record, here.at.x):
            return "the callback ended it", False
        return limits.reason(record)

    def _step(self, here: _Place, state: State) -> tuple[_Place, State]:
        """The next place, by the aggregator's direction or by the one that lowers all."""
        number = state["iteration"] + 1
        for w in (self.aggregator.weights(here.gram, state["iteration"]), here.weights):
            d = here.combined(w)
            found = _search(self.problem, self.rule, here, d, state.get("step", 1 / max(float(d.norm()), 1.0)))
            if found is not None:
                t, to = found
                state = {"iteration": number, "step": _next(here, to, w, t), "length": t}
                return self._mended(to) if number % MEND == 0 else to, state
        raise Stop("no step lowers all objectives: rounding")

    def _mended(self, here: _Place) -> _Place:
        """The place without drift, where all objectives are finite there."""
        at = mended(here.at, worse=None)
        if at is here.at:
            return here
        values, jacobian = self.problem.jacobian(at)
        return _Place(at, values, jacobian) if values.isfinite().all() and jacobian.isfinite().all() else here


def _known(problem: Objectives, at: Iterate) -> _Place:
    values, jacobian = problem.jacobian(at)
    if not (values.isfinite().all() and jacobian.isfinite().all()):
        raise ValueError(
            f"functions: their values are {values.tolist()} at x0, or a gradient is not finite there; expected finite "
            "numbers. Start where all objectives and their derivatives are defined."
        )
    return _Place(at, values, jacobian)


def _search(problem: Objectives, rule: Armijo, place: _Place, d: Tensor, t: float) -> tuple[float, _Place] | None:
    """Backtracking until all objectives are low enough."""
    slopes = -(place.jacobian @ d).cpu().double()
    if not (slopes < 0).all():
        return None
    slack = 4 * torch.finfo(d.dtype).eps * place.values.abs()
    for _ in range(rule.trials):
        to = place.at.move(-t * d)
        values = problem.each_value(to)
        if (values <= place.values + rule.decrease * t * slopes + slack).all():
            after, jacobian = problem.jacobian(to)
            if jacobian.isfinite().all():
                return t, _Place(to, after, jacobian)
        t *= rule.contraction
    return None


def _next(place: _Place, to: _Place, weights: Tensor, t: float) -> float:
    """Barzilai and Borwein's step for the objectives with these weights: <s, s> / <s, y>."""
    d = place.combined(weights)
    s, y = place.at.carry(-t * d, to.at), to.combined(weights) - place.at.carry(d, to.at)
    ss, sy = float(s @ s), float(s @ y)
    return min(max(ss / sy, 1e-10), 1e10) if sy > 0 and math.isfinite(sy) else 10 * t
