"""Minimise under equations and inequalities, on a manifold: the problem, its optimality, and the loop."""

from __future__ import annotations

import abc
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steepest.linalg.precision import widen
from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import each
from steepest.solvers.base import State, Stop
from steepest.solvers.loop import Journal, Limits, check_limits, named, place, shown
from steepest.solvers.problem import Evaluations, Function, Problem
from steepest.solvers.result import Record
from steepest.spec import Spec

HEADER = f"{'step':>6}  {'value':>23}  {'gradient':>12}  {'violation':>12}  {'evals':>8}  {'seconds':>8}"
"""Of the table."""
Constraints = Callable[[Any], Tensor]
"""Takes a point, and returns a real tensor of any shape: one constraint in each entry."""


class KKT(NamedTuple):
    """How far a point with multipliers is from satisfying the conditions of Karush, Kuhn and Tucker."""

    value: float
    stationarity: float
    """Riemannian norm of the gradient of the Lagrangian."""
    violation: float
    """Largest |c_i| and largest positive d_j."""
    complementarity: float
    """Largest |min(mu_j, -d_j)|."""

    @property
    def residual(self) -> float:
        """The largest of the three."""
        worst = max(self.stationarity, self.violation, self.complementarity)
        return math.inf if any(math.isnan(v) for v in self) else worst


class ConstrainedProblem:
    """A function f, equations c(x) = 0 and inequalities d(x) <= 0 on a manifold, and a count of what is computed.

    The Lagrangian is f + <lambda, c> + <mu, d>, with mu >= 0.

    >>> from steepest import Sphere
    >>> from steepest.solvers import ConstrainedProblem
    >>> problem = ConstrainedProblem(lambda x: x[0], Sphere(), lambda x: x[1], None)
    >>> problem.kkt(torch.tensor([-0.6, 0.8]), torch.tensor([0.0]), torch.zeros(0)).violation
    0.800000011920929
    """

    def __init__(
        self,
        fun: Function,
        manifold: Manifold,
        equalities: Constraints | None,
        inequalities: Constraints | None,
        seed: int = 0,
    ) -> None:
        self.fun, self.manifold, self.seed = fun, manifold, seed
        self.given = equalities, inequalities
        self.evaluations = Evaluations()
        self.inner = 0
        """Iterations of the methods inside."""
        self.tolerance = 0.0
        self.seconds_left: Callable[[], float | None] = lambda: None
        self.evaluations_left: Callable[[], int | None] = lambda: None

    def equalities(self, x: Any) -> Tensor:
        """c `(m,)`."""
        return _flat(self.given[0], x)

    def inequalities(self, x: Any) -> Tensor:
        """d `(k,)`."""
        return _flat(self.given[1], x)

    def lagrangian(self, equality: Tensor, inequality: Tensor) -> Problem:
        """As a problem of its own, whose evaluations count here."""

        def fun(x: Any) -> Tensor:
            value = self.fun(x)
            if len(equality):
                value = value + equality @ self.equalities(x)
            if len(inequality):
                value = value + inequality @ self.inequalities(x)
            return value

        return self.part(fun)

    def part(self, fun: Function) -> Problem:
        """A function on the same manifold, whose evaluations count here."""
        problem = Problem(fun, self.manifold, seed=self.seed)
        problem.evaluations = self.evaluations
        return problem

    def kkt(self, x: Any, equality: Tensor, inequality: Tensor) -> KKT:
        """The conditions at x with these multipliers."""
        with torch.no_grad():
            c, d = self.equalities(x), self.inequalities(x)
        violation = torch.cat([c.abs(), d.clamp_min(0), c.new_zeros(1)]).max()
        slack = torch.cat([torch.minimum(inequality, -d).abs(), c.new_zeros(1)]).max()
        at = self.lagrangian(equality, inequality).at(x)
        value = at.value - float(equality @ c) - float(inequality @ d)
        return KKT(value, at.norm, float(violation), float(slack))


class ConstrainedMethod(Spec, abc.ABC):
    """A way to minimise under constraints: a frozen dataclass whose fields are its options."""

    def fault(self, problem: ConstrainedProblem) -> str:
        """Why it does not work for this problem; the empty string where it does."""
        return ""

    @abc.abstractmethod
    def init(self, problem: ConstrainedProblem, x: Any, c: Tensor, d: Tensor) -> State:
        """The state before the first step: under "equality" and "inequality" the multipliers `(m,)`, `(k,)`."""

    @abc.abstractmethod
    def step(self, problem: ConstrainedProblem, x: Any, state: State) -> tuple[Any, State]:
        """The next point, and the state there, with what the table shows under "note"; raises `Stop` where there is
        none. Under "iteration" stands the number of steps before."""

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[ConstrainedMethod]:
        """Instances: what the tests run."""


@dataclasses.dataclass(frozen=True)
class ConstrainedResult:
    """What `minimize_constrained` returns.

    >>> from steepest.solvers import minimize_constrained
    >>> result = minimize_constrained(lambda x: (x - 1).square().sum(), torch.zeros(1, 2), inequalities=lambda x: x)
    >>> result.success, result.inequality_multipliers.numpy().round(3)
    (True, array([[2., 2.]], dtype=float32))
    """

    x: Any
    """The point with the least residual that was found."""
    value: float
    equality_multipliers: Tensor | None
    """lambda, of the shape of the constraints; f + <lambda, c> + <mu, d> is stationary."""
    inequality_multipliers: Tensor | None
    """mu, not negative."""
    stationarity: float
    """Riemannian norm of the gradient of the Lagrangian."""
    violation: float
    """Largest |c_i| and largest positive d_j."""
    complementarity: float
    """Largest |min(mu_j, -d_j)|."""
    iterations: int
    inner_iterations: int
    evaluations: Evaluations
    seconds: float
    reason: str
    success: bool
    """Whether stationarity, violation and complementarity are at most the tolerance."""
    history: list[Record]
    """With the norm of the Lagrangian's gradient, and in the note the violation."""
    method: Any

    @property
    def residual(self) -> float:
        """The largest of stationarity, violation and complementarity."""
        return max(self.stationarity, self.violation, self.complementarity)

    def __repr__(self) -> str:
        return (
            f"{type(self.method).__name__}: {self.reason} (success={self.success})\n"
            f"value {self.value:.15g}, stationarity {self.stationarity:.3g}, violation {self.violation:.3g}, "
            f"complementarity {self.complementarity:.3g}\n"
            f"after {self.iterations} iterations, {self.inner_iterations} inner ones, in {self.seconds:.2f} s\n"
            f"{self.evaluations}"
        )


def minimize_constrained(
    fun: Function,
    x0: Any,
    manifold: Manifold | None = None,
    equalities: Constraints | None = None,
    inequalities: Constraints | None = None,
    method: ConstrainedMethod | str = "AugmentedLagrangian",
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 100,
    max_evaluations: int | None = None,
    max_seconds: float | None = None,
    verbose: int = 0,
    callback: Callable[[Record, Any], Any] | None = None,
    seed: int = 0,
) -> ConstrainedResult:
    """Minimise a function on a manifold where equalities(x) = 0 and inequalities(x) <= 0.

    Args:
        fun: takes a point, and returns a tensor with one real number; made of torch operations.
        x0: where to start, on the manifold; the constraints need not hold there.
        manifold: where x lives. None: anywhere, as a plain tensor (or tuple of tensors).
        equalities: takes a point, and returns a tensor of any shape that is to be zero.
        inequalities: the same, for entries that are not to be positive.
        method: `AugmentedLagrangian(...)`, `SketchedNewton(...)`, or the name of one.
        tolerance: of the norm of the Lagrangian's Riemannian gradient, of the constraints, and of complementarity.
        max_iterations: outer ones.
        max_evaluations, max_seconds: where to stop at the latest.
        verbose: print every so many-th iteration.
        callback: called as `callback(record, x)` before the first and after each outer iteration; what is true ends it.
        seed: of methods that draw random numbers.

    Raises:
        ValueError: x0 is not on the manifold, something is not finite there, or the method does not fit.
        TypeError: what a constraint returns is not a real tensor.

    >>> from steepest import Sphere
    >>> from steepest.solvers import minimize_constrained
    >>> a = torch.tensor([[2.0, -1.0, 0.0], [-1.0, 1.0, 0.5], [0.0, 0.5, 1.0]])
    >>> x0 = torch.full((3,), 3**-0.5)
    >>> result = minimize_constrained(lambda x: -x @ a @ x, x0, Sphere(), inequalities=lambda x: -x, tolerance=1e-4)
    >>> result.x.numpy().round(2) + 0.0, round(result.value, 2)
    (array([1., 0., 0.], dtype=float32), -2.0)
    """
    started = time.perf_counter()
    method = named(ConstrainedMethod, method)
    if equalities is None and inequalities is None:
        raise ValueError("equalities, inequalities: both are None; without constraints use `minimize`")
    manifold, x = place(manifold, x0)
    check_limits(tolerance, max_iterations, max_evaluations, max_seconds, 0.0, verbose)
    problem = ConstrainedProblem(fun, manifold, equalities, inequalities, seed)
    problem.tolerance = tolerance
    if max_seconds is not None:
        problem.seconds_left = lambda: max(max_seconds - (time.perf_counter() - started), 0.0)
    if max_evaluations is not None:
        problem.evaluations_left = lambda: max(max_evaluations - problem.evaluations.total, 0)
    if fault := method.fault(problem):
        raise ValueError(f"method: {type(method).__name__} {fault}")
    state = {**method.init(problem, x, *_start(problem, x)), "iteration": 0}
    measure = "the largest of stationarity, violation and complementarity"
    limits = Limits(tolerance, max_iterations, max_evaluations, max_seconds, measure=measure)
    return _Run(problem, method, started, verbose, callback).loop(x, state, limits)


def _row(record: Record) -> str:
    rest = "  ".join(f"{k} {v:.3g}" for k, v in record.note.items() if k != "violation")
    numbers = f"{record.iteration:>6}  {record.value:>+23.15e}  {record.gradient_norm:>12.5e}"
    return f"{numbers}  {record.note['violation']:>12.5e}  {record.evaluations:>8}  {record.seconds:>8.2f}  {rest}"


class _Run(Journal):
    header = HEADER
    row = staticmethod(_row)

    def __init__(
        self,
        problem: ConstrainedProblem,
        method: ConstrainedMethod,
        started: float,
        verbose: int,
        callback: Callable[[Record, Any], Any] | None,
    ) -> None:
        super().__init__([], started, verbose)
        self.problem, self.method = problem, method
        self.callback = callback
        self.best: tuple[Any, KKT, State] | None = None

    def loop(self, x: Any, state: State, limits: Limits) -> ConstrainedResult:
        """Steps until there is a reason to stop."""
        self._begin()
        end = self._look(x, state, limits)
        while end is None:
            try:
                x, changed = self.method.step(self.problem, x, state)
            except Stop as stop:
                end = stop.reason, stop.converged
                break
            state = {**changed, "iteration": state["iteration"] + 1}
            end = self._look(x, state, limits)
        self._end(end[0])
        return self._result(state["iteration"], end[0], limits)

    def _look(self, x: Any, state: State, limits: Limits) -> tuple[str, bool] | None:
        """Write the history, and see whether there is a reason to stop."""
        kkt = self.problem.kkt(x, state["equality"], state["inequality"])
        count, note = self.problem.evaluations.total, {"violation": kkt.violation, **shown(state.get("note", {}))}
        record = Record(state["iteration"], kkt.value, kkt.stationarity, self._seconds(), count, note)
        self._write(record)
        if self.best is None or kkt.residual <= self.best[1].residual:
            self.best = x, kkt, state
        if self.callback is not None and self.callback(record, x):
            return "the callback ended it", False
        return limits.reason(record._replace(gradient_norm=kkt.residual))

    def _result(self, iterations: int, reason: str, limits: Limits) -> ConstrainedResult:
        assert self.best is not None
        (x, kkt, state), problem = self.best, self.problem
        with torch.no_grad():
            shapes = [None if g is None else g(x).shape for g in problem.given]
        return ConstrainedResult(
            x,
            kkt.value,
            _shaped(state["equality"], shapes[0]),
            _shaped(state["inequality"], shapes[1]),
            *kkt[1:],
            iterations,
            problem.inner,
            problem.evaluations,
            self._seconds(),
            reason,
            limits.tolerance is not None and kkt.residual <= limits.tolerance,
            self.history,
            self.method,
        )


def _start(problem: ConstrainedProblem, x: Any) -> tuple[Tensor, Tensor]:
    """The constraints at x0, with errors for what is not finite there."""
    with torch.no_grad():
        values = {
            "fun": torch.tensor(problem.part(problem.fun).value(x)),
            "equalities": _checked(problem.given[0], x, "equalities"),
            "inequalities": _checked(problem.given[1], x, "inequalities"),
        }
    for name, value in values.items():
        if not value.isfinite().all():
            raise ValueError(f"{name}: not finite at x0; start where the function and the constraints are defined")
    return problem.equalities(x).detach(), problem.inequalities(x).detach()


def _checked(given: Constraints | None, x: Any, name: str) -> Tensor:
    found = torch.zeros(0) if given is None else given(x)
    if not isinstance(found, Tensor) or found.is_complex():
        got = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"{name}: got {got}, expected a tensor of real numbers, one for each constraint")
    return found


def _flat(given: Constraints | None, x: Any) -> Tensor:
    if given is None:
        first = each(lambda t: t, x)
        first = first[0] if isinstance(first, tuple) else first
        return torch.zeros(0, dtype=first.real.dtype if first.is_complex() else first.dtype, device=first.device)
    return widen(given(x)).reshape(-1)


def _shaped(multipliers: Tensor, shape: torch.Size | None) -> Tensor | None:
    return None if shape is None else multipliers.reshape(shape)
