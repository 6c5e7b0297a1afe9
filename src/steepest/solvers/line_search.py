"""How far to go along a direction: line searches as values."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.solvers.problem import Iterate
from steepest.spec import Spec

Found = tuple[float, Iterate]
"""The step's length in units of the direction, and the point that it leads to."""


class LineSearch(Spec, abc.ABC):
    """A rule for the number t in phi(t) = f(retract(t p)), for a direction p of descent.

    A value that is infinite or NaN counts as too high, so that a function need not be defined everywhere. Values closer
    to each other than rounding are taken as equal.
    """

    slopes: ClassVar[bool] = True
    """Whether it looks at phi'(t), so that the gradient at the point it finds is there already."""

    @abc.abstractmethod
    def search(
        self, at: Iterate, p: Tensor, slope: float, initial: float, reference: float | None = None
    ) -> Found | None:
        """t and the point there; None where no t is found.

        Args:
            at: where the search starts.
            p: the direction, `(n,)`.
            slope: phi'(0), negative.
            initial: the t to be tried first.
            reference: a value to decrease from, at least f at the start; None: that value itself.
        """


@dataclasses.dataclass(frozen=True)
class Armijo(LineSearch):
    """Backtracking: the first t that decreases f by at least `decrease` times what the slope promises.

    Each next t is the minimiser of the parabola through the three numbers known, within a tenth and `contraction` of
    the last. It takes values of f alone.

    With `refine` a t that will do is compared with the minimiser of its parabola, at most ten times as far, and the
    lower one of the two is taken: for directions, like those of conjugate gradients, that want the minimum along them.
    Where values differ by little more than rounding, the slope at t tells where the minimum is.

    Armijo 1966; Nocedal and Wright 2006, algorithm 3.1 and page 58.

    >>> from steepest.solvers import Armijo, minimize
    >>> minimize(lambda x: (x**4).sum(), torch.ones(2, 2), method="SteepestDescent", tolerance=1e-3).success
    True
    """

    decrease: float = 1e-4
    contraction: float = 0.5
    trials: int = 40
    refine: bool = False

    slopes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("decrease", self.decrease, 0, 1, open_low=True, open_high=True)
        check_range("contraction", self.contraction, 0.1, 1, open_low=True, open_high=True)
        check_range("trials", self.trials, 1)

    def search(
        self, at: Iterate, p: Tensor, slope: float, initial: float, reference: float | None = None
    ) -> Found | None:
        """The first t, from `initial` down."""
        found = self.along(lambda t: at.move(t * p), at, slope, initial, reference)
        if not self.refine or found is None or found[1].value < at.value - 100 * rounding(at):
            return found
        t, to = found
        after = at.slope(p, t, to)
        if abs(after) <= -0.2 * slope:
            return found
        best = min(t * slope / (slope - after), 10 * t) if after > slope else 10 * t
        other = at.move(best * p)
        highest = at.value if reference is None else reference
        return (best, other) if other.value <= highest + rounding(at) else found

    def along(
        self,
        path: Callable[[float], Iterate],
        at: Iterate,
        slope: float,
        initial: float,
        reference: float | None = None,
    ) -> Found | None:
        """`search` on any curve t -> point that leaves `at`, with f's slope there."""
        start = at.value if reference is None else reference
        t = initial
        for _ in range(self.trials):
            to = path(t)
            best = _parabola(at.value, slope, t, to.value)
            if to.value <= start + self.decrease * t * slope + rounding(at):
                return self._refined(path, at, t, to, min(best, 10 * t)) if self.refine else (t, to)
            t = min(max(best, 0.1 * t), self.contraction * t)
        return None

    def _refined(self, path: Callable[[float], Iterate], at: Iterate, t: float, to: Iterate, best: float) -> Found:
        if 0.8 * t <= best <= 1.25 * t or abs(to.value - at.value) <= 12 * rounding(at):
            return t, to
        other = path(best)
        return (best, other) if other.value < to.value else (t, to)


LEVEL = 4
"""Trials that differ from the start by rounding alone, after which Wolfe's search takes the one of least slope."""


@dataclasses.dataclass(frozen=True)
class Wolfe(LineSearch):
    """The strong Wolfe conditions: enough decrease, and a slope of at most `curvature` times the first one.

    The interval grows until it holds such a t, and is then cut by cubic interpolation. Where values differ by rounding
    alone, slopes decide (`HagerZhang`'s approximate condition).

    Wolfe 1969; Nocedal and Wright 2006, algorithms 3.5 and 3.6.

    >>> from steepest.solvers import LBFGS, Wolfe, minimize
    >>> method = LBFGS(line_search=Wolfe(curvature=0.5))
    >>> minimize(lambda x: (x - 1).square().sum(), torch.zeros(2, 2), method=method).success
    True
    """

    decrease: float = 1e-4
    curvature: float = 0.9
    trials: int = 40

    def __post_init__(self) -> None:
        check_range("decrease", self.decrease, 0, 1, open_low=True, open_high=True)
        check_range("curvature", self.curvature, self.decrease, 1, open_low=True, open_high=True)
        check_range("trials", self.trials, 1)

    def search(
        self, at: Iterate, p: Tensor, slope: float, initial: float, reference: float | None = None
    ) -> Found | None:
        """Bracketing, then zooming."""
        line = _Line(at, p, slope, reference)
        low, t = line.start, initial
        for n in range(self.trials):
            trial = line.trial(t)
            if not line.lower(trial, low, self.decrease):
                return self._zoom(line, low, trial, self.trials - n)
            if line.good(trial, self.decrease, self.curvature):
                return trial.found
            if trial.slope >= 0:
                return self._zoom(line, trial, low, self.trials - n)
            low, t = trial, _extrapolated(low, trial)
        return low.found if low.t else None

    def _zoom(self, line: _Line, low: _Trial, high: _Trial, trials: int) -> Found | None:
        """`low` is the best t with enough decrease so far, and the slope there points to `high`."""
        level: list[_Trial] = []
        for _ in range(trials):
            trial = line.trial(_cubic(low, high))
            if abs(trial.value - line.value) <= line.slack:
                level.append(trial)
            if len(level) == LEVEL:
                return min(level, key=lambda t: abs(t.slope)).found
            if not line.lower(trial, low, self.decrease):
                high = trial
            else:
                if line.good(trial, self.decrease, self.curvature):
                    return trial.found
                if trial.slope * (high.t - low.t) >= 0:
                    high = low
                low = trial
            if abs(high.t - low.t) <= 4 * line.eps * max(high.t, low.t):
                break
        return low.found if low.t else None


@dataclasses.dataclass(frozen=True)
class HagerZhang(LineSearch):
    """The Wolfe conditions, or the approximate ones, which hold to full precision where values no longer tell.

    A t is accepted with `decrease` and `curvature` as in Wolfe's weak conditions, or where (2 decrease - 1) phi'(0) >=
    phi'(t) >= curvature phi'(0) and phi(t) is no higher than the start but for `slack` times its size. Secant steps
    from both ends of the interval make it shrink fast.

    Hager and Zhang 2005, "A new conjugate gradient method with guaranteed descent and an efficient line search",
    section 4; with the constants of their code.

    >>> from steepest.solvers import ConjugateGradients, HagerZhang, minimize
    >>> method = ConjugateGradients(line_search=HagerZhang(curvature=0.5))
    >>> minimize(lambda x: (x - 1).square().sum(), torch.zeros(2, 2), method=method).success
    True
    """

    decrease: float = 0.1
    curvature: float = 0.9
    slack: float = 1e-6
    shrink: float = 0.66
    expand: float = 5.0
    trials: int = 40

    def __post_init__(self) -> None:
        check_range("decrease", self.decrease, 0, 0.5, open_low=True, open_high=True)
        check_range("curvature", self.curvature, self.decrease, 1, open_high=True)
        check_range("slack", self.slack)
        check_range("shrink", self.shrink, 0, 1, open_low=True, open_high=True)
        check_range("expand", self.expand, 1, open_low=True)
        check_range("trials", self.trials, 1)

    def search(
        self, at: Iterate, p: Tensor, slope: float, initial: float, reference: float | None = None
    ) -> Found | None:
        """An interval whose ends have slopes of different signs, cut until one end will do."""
        line = _Line(at, p, slope, reference, self)
        try:
            low, high = self._bracket(line, initial)
            while True:
                width = high.t - low.t
                if not low.t < (low.t + high.t) / 2 < high.t:  # neighbouring numbers
                    return line.best.found if line.best else None
                low, high = self._secant2(line, low, high)
                if high.t - low.t > self.shrink * width:
                    low, high = self._update(line, low, high, (low.t + high.t) / 2)
        except _Done as done:
            return done.found

    def _bracket(self, line: _Line, t: float) -> tuple[_Trial, _Trial]:
        """Steps B0 to B3 of the paper."""
        low = line.start
        while True:
            trial = line.trial(t)
            if trial.slope >= 0 and line.near(trial):
                return low, trial
            if not line.near(trial):
                return self._squeeze(line, line.start, trial)
            low, t = trial, self.expand * t

    def _squeeze(self, line: _Line, low: _Trial, high: _Trial) -> tuple[_Trial, _Trial]:
        """Step U3: f at `high` is too high to be of use, although the slope there may be negative."""
        while True:
            trial = line.trial((low.t + high.t) / 2 if math.isfinite(high.value) else 0.9 * low.t + 0.1 * high.t)
            if trial.slope >= 0 and line.near(trial):
                return low, trial
            if line.near(trial):
                low = trial
            else:
                high = trial

    def _update(self, line: _Line, low: _Trial, high: _Trial, t: float) -> tuple[_Trial, _Trial]:
        """Steps U0 to U3: the smaller interval with t for an end."""
        if not low.t < t < high.t:
            return low, high
        trial = line.trial(t)
        if trial.slope >= 0 and line.near(trial):
            return low, trial
        return (trial, high) if line.near(trial) else self._squeeze(line, low, trial)

    def _secant2(self, line: _Line, low: _Trial, high: _Trial) -> tuple[_Trial, _Trial]:
        """Steps S1 to S4."""
        t = _secant(low, high)
        a, b = self._update(line, low, high, t)
        if b.t == t:
            t = _secant(high, b)
        elif a.t == t:
            t = _secant(low, a)
        else:
            return a, b
        return self._update(line, a, b, t)


# What they share. -----------------------------------------------------------------------------------------------------


def rounding(at: Iterate) -> float:
    """What two values of f near this one may differ by for no reason: it is a sum of many terms."""
    return 32 * torch.finfo(at.dtype).eps * abs(at.value)


def _parabola(start: float, slope: float, t: float, value: float) -> float:
    """Minimiser of the parabola with this start, slope and value at t; infinite where it has none, zero where the value
    is not finite."""
    if not math.isfinite(value):
        return 0.0
    rise = value - start - slope * t
    return -slope * t**2 / (2 * rise) if rise > 0 else math.inf


def guess(at: Iterate, to: Iterate, slope: float, t: float) -> float:
    """The t to be tried first on the next curve like this one: the minimiser of the parabola through the values at both
    ends, with the slope at the first, within a tenth and ten times t; t itself where rounding bends the parabola."""
    if abs(to.value - at.value - slope * t) <= 10 * rounding(at):
        return t
    return min(max(_parabola(at.value, slope, t, to.value), t / 10), 10 * t)


class _Done(Exception):
    def __init__(self, found: Found | None) -> None:
        self.found = found


class _Trial:
    """A t, the value and the slope there."""

    def __init__(self, line: _Line, t: float, to: Iterate) -> None:
        self.line, self.t, self.to = line, t, to
        self.found = (t, to)
        self.value = to.value

    @functools.cached_property
    def slope(self) -> float:
        """phi'(t); of a point where f is not finite, upward."""
        if self.t == 0:
            return self.line.slope
        found = self.line.at.slope(self.line.p, self.t, self.to) if math.isfinite(self.value) else math.inf
        return found if math.isfinite(found) else math.inf

    @functools.cached_property
    def estimate(self) -> float:
        """The slope as quasi-Newton methods see it: of the gradient here and the direction carried to here."""
        line = self.line
        found = float(self.to.gradient @ line.at.carry(line.p, self.to)) if math.isfinite(self.value) else math.inf
        return found if math.isfinite(found) else math.inf


class _Line:
    """phi, and what is asked of a t. With `rule`, a trial that will do ends the search at once."""

    def __init__(
        self, at: Iterate, p: Tensor, slope: float, reference: float | None, rule: HagerZhang | None = None
    ) -> None:
        self.at, self.p, self.slope, self.rule = at, p, slope, rule
        self.value = at.value if reference is None else reference
        self.eps = torch.finfo(p.dtype).eps
        self.slack = rounding(at) if rule is None else max(rounding(at), rule.slack * abs(at.value))
        self.start = _Trial(self, 0.0, at)
        self.count = 0
        self.best: _Trial | None = None

    def trial(self, t: float) -> _Trial:
        """phi at t."""
        self.count += 1
        trial = _Trial(self, t, self.at.move(t * self.p))
        rule = self.rule
        if rule is not None:
            if self._weak(trial, rule):
                raise _Done(trial.found)
            if trial.value < (self.best or self.start).value:
                self.best = trial
            if self.count >= rule.trials or not t:
                raise _Done(self.best.found if self.best else None)
        return trial

    def near(self, trial: _Trial) -> bool:
        """Whether f is no higher than at the start, to within the slack."""
        return trial.value <= self.value + self.slack

    def lower(self, trial: _Trial, low: _Trial, decrease: float) -> bool:
        """Whether f decreases as the slope promises, and is no higher than at `low`."""
        enough = trial.value <= self.value + decrease * trial.t * self.slope + self.slack
        return enough and trial.value <= low.value + self.slack

    def good(self, trial: _Trial, decrease: float, curvature: float) -> bool:
        """Wolfe's strong conditions, given the first of them; the carried direction may show the second one, at a
        fraction of the slope's cost."""
        limit = -curvature * self.slope
        return abs(trial.estimate) <= limit or abs(trial.slope) <= limit

    def _weak(self, trial: _Trial, rule: HagerZhang) -> bool:
        if not math.isfinite(trial.value):
            return False
        promised = rule.decrease * trial.t * self.slope
        # a decrease that rounding could have made says nothing of t: the slope has to
        enough = trial.value <= self.value + promised and -promised > rounding(self.at)
        if not (enough or self.near(trial)) or not trial.slope >= rule.curvature * self.slope:
            return False
        return enough or trial.slope <= (2 * rule.decrease - 1) * self.slope


def _cubic(low: _Trial, high: _Trial) -> float:
    """Minimiser of the cubic through two values and slopes, well inside the interval; its middle where that fails."""
    middle, width = (low.t + high.t) / 2, high.t - low.t
    if not math.isfinite(high.value):
        return low.t + width / 10
    d = low.slope + high.slope - 3 * (low.value - high.value) / (low.t - high.t)
    square = d * d - low.slope * high.slope
    if not math.isfinite(square) or square < 0:
        return middle
    root = math.copysign(math.sqrt(square), width)
    below = high.slope - low.slope + 2 * root
    t = high.t - width * (high.slope + root - d) / below if below else middle
    share = (t - low.t) / width
    return t if 0.05 <= share <= 0.95 else low.t + width * min(max(share, 0.1), 0.9) if share == share else middle


def _extrapolated(low: _Trial, trial: _Trial) -> float:
    """Where the slope would vanish if it were linear, from two to ten times as far."""
    return min(max(_secant(low, trial), 2 * trial.t), 10 * trial.t) if trial.slope > low.slope else 10 * trial.t


def _secant(a: _Trial, b: _Trial) -> float:
    """Zero of the line through two slopes; NaN where there is none."""
    return (a.t * b.slope - b.t * a.slope) / (b.slope - a.slope) if b.slope != a.slope else math.nan
