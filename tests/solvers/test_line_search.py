"""What line searches find, on functions of one variable, and how near to a minimum they lead."""

import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest import Euclidean, Stiefel, minimize
from steepest.solvers import LBFGS, Armijo, ConjugateGradients, HagerZhang, Problem, SteepestDescent, Wolfe

ALONG = torch.ones(1, dtype=torch.float64)
EPS = 2.0**-52


class Line:
    """phi(t), as a function on the line, with its value and slope at t."""

    def __init__(self, phi):
        self.phi = phi
        self.problem = Problem(lambda x: phi(x[0]), Euclidean(1))

    def at(self, t):
        return self.problem.at(torch.tensor([t], dtype=torch.float64))

    def value(self, t):
        return self.at(t).value

    def slope(self, t):
        return float(self.at(t).gradient[0])

    def search(self, rule, initial=1.0):
        return rule.search(self.at(0.0), ALONG, self.slope(0.0), initial)

    def noise(self):
        return 4 * EPS * abs(self.value(0.0))


def waves(depth, rate, phase, hole):
    """Downhill at zero, bounded below, with minima between; undefined beyond `hole`."""

    def phi(t):
        value = depth * (t - 2).square() / 4 + torch.sin(rate * t + phase) / (2 * rate) - (depth + 0.6) * t
        return torch.where(t > hole, torch.nan, value)

    return Line(phi)


shapes = st.builds(
    waves,
    depth=st.floats(0.01, 10),
    rate=st.floats(0.5, 20),
    phase=st.floats(0, 6),
    hole=st.sampled_from([0.01, 0.7, 2.5, math.inf]),
)
initials = st.sampled_from([1e-4, 0.3, 1.0, 30.0])


@settings(max_examples=40, deadline=None)
@given(line=shapes, initial=initials, decrease=st.sampled_from([1e-4, 0.3]))
def test_armijo(line, initial, decrease):
    """Enough decrease, and no more backtracking than the rule asks for."""
    t, to = line.search(Armijo(decrease=decrease), initial)
    assert 0 < t <= initial * 10
    assert to.value == line.value(t)
    assert to.value <= line.value(0.0) + decrease * t * line.slope(0.0) + line.noise()


@settings(max_examples=40, deadline=None)
@given(line=shapes, initial=initials, curvature=st.sampled_from([0.1, 0.9]))
def test_wolfe(line, initial, curvature):
    """The strong conditions; where the function ends before its slope does, decrease alone."""
    t, to = line.search(Wolfe(curvature=curvature), initial)
    start = line.slope(0.0)
    assert to.value <= line.value(0.0) + 1e-4 * t * start + line.noise()
    flat = abs(line.slope(t)) <= -curvature * start * (1 + 1e-9)
    assert flat or math.isinf(line.value(t * 1.05)), (t, line.slope(t), start)


@settings(max_examples=40, deadline=None)
@given(line=shapes, initial=initials, curvature=st.sampled_from([0.2, 0.9]))
def test_hager_zhang(line, initial, curvature):
    """Wolfe's weak conditions, or the approximate ones."""
    rule = HagerZhang(curvature=curvature)
    t, to = line.search(rule, initial)
    start, here = line.slope(0.0), line.slope(t)
    slack = rule.slack * abs(line.value(0.0)) + line.noise()
    enough = to.value <= line.value(0.0) + rule.decrease * t * start + line.noise()
    near = to.value <= line.value(0.0) + slack and here <= (2 * rule.decrease - 1) * start * (1 - 1e-9)
    steep = here >= curvature * start * (1 + 1e-9)
    assert ((enough or near) and steep) or math.isinf(line.value(t * 1.05)), (t, here, start)


FUNCTIONS = {
    "quadratic": (lambda t: (t - 3).square(), 1.0),
    "steep valley": (lambda t: 100 * (t - 0.01).square(), 1.0),
    "quartic": (lambda t: (t - 2) ** 4 + (t - 2).square(), 1.0),
    "exponential": (lambda t: torch.exp(t) - 5 * t, 1.0),
    "far": (lambda t: (t - 300).square() / 1e3, 1.0),
    "More and Thuente 5.1": (lambda t: -t / (t.square() + 2), 1.0),
    "More and Thuente 5.2": (lambda t: (t + 0.004) ** 5 - 2 * (t + 0.004) ** 4, 0.1),
    "wave": (lambda t: torch.cos(2 * t) - 2 * t, 1.0),
}


@pytest.mark.parametrize("curvature", [0.1, 0.9])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_wolfe_beside_scipy(name, curvature):
    """Both satisfy the strong conditions, and ours takes no many more evaluations."""
    phi, initial = FUNCTIONS[name]
    line = Line(phi)
    start = line.slope(0.0)

    def wolfe(t):
        return line.value(t) <= line.value(0.0) + 1e-4 * t * start and abs(line.slope(t)) <= -curvature * start

    before = line.problem.evaluations.values
    t, _ = line.search(Wolfe(curvature=curvature), initial)
    ours = line.problem.evaluations.values - before
    assert wolfe(t)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, calls, *_ = scipy.optimize.line_search(
            lambda x: line.value(float(x[0])),
            lambda x: np.array([line.slope(float(x[0]))]),
            np.zeros(1),
            np.ones(1),
            c1=1e-4,
            c2=curvature,
            maxiter=40,
        )
    assert theirs is None or wolfe(theirs)
    assert theirs is None or ours <= calls + 6, (ours, calls)


@pytest.mark.parametrize("rule", [Armijo(), Wolfe(), HagerZhang()], ids=lambda r: type(r).__name__)
def test_no_step(rule):
    """Uphill all the way, against what the slope promises, or undefined: None, after a bounded number of trials."""
    for phi in (lambda t: t.abs(), lambda t: torch.where(t > 0, torch.nan, -t)):
        line = Line(phi)
        found = rule.search(line.at(0.0), ALONG, -1.0, 1.0)
        assert found is None or found[1].value <= line.value(0.0)
        assert line.problem.evaluations.values <= 2 * rule.trials + 5


@pytest.mark.parametrize("rule", [Armijo(), Wolfe(), HagerZhang()], ids=lambda r: type(r).__name__)
def test_a_hole_next_to_the_start(rule):
    """Defined up to 1e-3 alone: the step ends there."""
    line = Line(lambda t: torch.where(t > 1e-3, torch.inf, -t))
    t, to = line.search(rule)
    assert 1e-5 <= t <= 1e-3
    assert to.value == -t


@pytest.mark.parametrize("rule", [Wolfe(curvature=0.1), HagerZhang(curvature=0.1)], ids=lambda r: type(r).__name__)
def test_far_away(rule):
    """A minimum 1e6 first steps away is bracketed by growing steps."""
    line = Line(lambda t: (t - 1e6).square() / 1e6)
    t, _ = line.search(rule)
    assert abs(t - 1e6) < 2e5  # the slope a tenth of the first, with room
    assert line.problem.evaluations.values < 30


def test_a_reference_above_the_value():
    """A nonmonotone search accepts what climbs below the reference."""
    line = Line(lambda t: (t - 1).square())
    at = line.at(0.0)
    strict, loose = (Armijo(decrease=0.01).search(at, ALONG, -2.0, 2.5, ref) for ref in (None, 10.0))
    assert strict[0] < 2.0
    assert loose[0] == 2.5
    assert loose[1].value > at.value


def test_conditions_on_a_manifold():
    """The slope along the retraction, which is no straight line there: against differences."""
    m = Stiefel()
    x = m.random_point((5, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at = Problem(lambda x: (x**4).sum() + x[0, 0], m).at(x)
    p = -at.gradient
    for rule, curvature in ((Wolfe(curvature=0.2), 0.2), (HagerZhang(curvature=0.2), 0.2)):
        t, to = rule.search(at, p, -(at.norm**2), 0.01)
        h = 1e-6
        slope = (at.move((t + h) * p).value - at.move((t - h) * p).value) / (2 * h)
        assert abs(slope - at.slope(p, t, to)) < 1e-8  # h^2 and eps / h
        assert abs(slope) <= curvature * at.norm**2 + 1e-8


def test_full_precision():
    """Values are known to eps |f| alone, and so a minimiser to the root of that; slopes tell more: searches that use
    them go on to gradients near eps, where the one that does not stops."""
    a = torch.diag(torch.linspace(1, 10, 8, dtype=torch.float64))
    x0 = torch.ones(8, dtype=torch.float64)

    def fun(x):
        return 1000 + (x - 1 / 3) @ a @ (x - 1 / 3) + (x - 1 / 3).pow(4).sum()

    ends = {}
    for rule in (Armijo(), Wolfe(), HagerZhang()):
        for method in (ConjugateGradients(line_search=rule), LBFGS(line_search=rule)):
            result = minimize(fun, x0, Euclidean(1), method, tolerance=1e-15, max_iterations=400)
            ends[type(rule), type(method)] = result.gradient_norm
    for method in (ConjugateGradients, LBFGS):
        assert ends[HagerZhang, method] < 1e-12, ends
        assert ends[Wolfe, method] < 1e-12, ends
    assert ends[Armijo, ConjugateGradients] > 1e-9, ends
    plain = SteepestDescent(barzilai_borwein=False, memory=1, line_search=HagerZhang())
    assert minimize(fun, x0, Euclidean(1), plain, tolerance=1e-12, max_iterations=400).success


@pytest.mark.parametrize(
    ("rule", "option", "value"),
    [
        (Armijo, "decrease", 1.0),
        (Armijo, "contraction", 1.0),
        (Armijo, "trials", 0),
        (Wolfe, "curvature", 1e-5),
        (Wolfe, "decrease", 0.0),
        (HagerZhang, "decrease", 0.5),
        (HagerZhang, "shrink", 1.0),
        (HagerZhang, "expand", 1.0),
        (HagerZhang, "slack", math.nan),
    ],
)
def test_options(rule, option, value):
    with pytest.raises(ValueError, match=option):
        rule(**{option: value})


def test_a_refined_step_is_not_taken_where_the_function_ends():
    """By slopes alone the minimum lies ten times as far, where f is infinite."""

    def fun(x):
        return torch.where(x > 2, torch.inf, 1e9 - 1e-7 * x).sum()

    at = Problem(fun, Euclidean(1)).at(torch.zeros(1, dtype=torch.float64))
    p = -at.gradient / at.norm
    t, to = Armijo(refine=True).search(at, p, float(at.gradient @ p), 1.0)
    assert to.value <= at.value
    assert t == 1.0
