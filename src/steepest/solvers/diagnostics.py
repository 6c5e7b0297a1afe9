"""Whether a gradient and a Hessian are those of the function: by how fast the error of a Taylor polynomial falls."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.linalg.precision import widen
from steepest.manifolds.base import Manifold
from steepest.manifolds.implicit import ConvergenceWarning
from steepest.manifolds.tensors import as_tuple, each, like
from steepest.solvers.loop import place
from steepest.solvers.problem import Function, Iterate, Problem

PER_DECADE = 8
"""Lengths t that are tried between one power of ten and the next."""
STRAIGHT = 0.05
"""Decades by which points of a straight stretch may be off the line."""


@dataclasses.dataclass(frozen=True, repr=False)
class Check:
    """What `check_gradient` and `check_hessian` return: true if nothing is wrong, and in words what is.

    >>> from steepest import Sphere, check_gradient
    >>> x = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    >>> wrong = check_gradient(lambda x: (x**4).sum(), Sphere(), x, gradient=lambda x: 2 * x**3)
    >>> bool(wrong), round(wrong.slope, 1)
    (False, 1.0)
    >>> print(wrong.findings[1])
    it is 0.5 times the derivative, in all 3 directions tried: a factor is missing or too much
    """

    what: str
    """ "gradient" or "Hessian"."""
    passed: bool
    slope: float
    """Of log error against log t; NaN where too little of the error is above rounding."""
    expected: int
    """What it should be at least: 2 for a gradient, 3 for a Hessian."""
    ts: list[float]
    """Lengths of the steps, in units of the direction, whose length is one where it was not given."""
    errors: list[float]
    """|f - Taylor polynomial| there."""
    stretch: tuple[float, float] | None
    """The ts between which the curve is straight, next to where rounding begins; there the slope is measured."""
    rounding: float
    """Level below which errors are those of the function's rounding."""
    findings: tuple[str, ...]
    """What is wrong, or worth to know."""

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        head = f"{self.what}: {'right' if self.passed else 'WRONG'}, as far as its values tell"
        if self.stretch is not None:
            low, high = self.stretch
            head = (
                f"{self.what}: {'right' if self.passed else 'WRONG'}. The error of the Taylor polynomial falls with "
                f"slope {self.slope:.2f}, expected {self.expected}, between t = {high:.0e} and {low:.0e}"
            )
        return "\n- ".join([head, *self.findings])

    def plot(self) -> Any:
        """A matplotlib figure of the errors against t, with lines of the slopes of right and wrong derivatives.
        `figure.savefig("check.png")` writes it."""
        from steepest.solvers.figures import slopes

        return slopes(self)


def check_gradient(
    fun: Function,
    manifold: Manifold | None,
    x: Any,
    direction: Any = None,
    *,
    gradient: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> Check:
    """Whether a gradient is that of the function at x.

    The error |f(retract(t v)) - f(x) - t <grad f, v>| is O(t^2) for the right gradient, and O(t) for another: on a
    double logarithmic scale a line of slope 2 or 1.

    Args:
        fun, manifold, gradient: as `minimize` has them. None for the gradient checks autograd's, and so a backward
            formula that someone has written.
        x: a point, better in float64 than in float32, and better none where the derivative vanishes.
        direction: tangent vector v. None: a random one of length one.
        seed: of random directions.

    Returns:
        A `Check`: true or false, with the reasons in its `repr`, and `.plot()`.

    Boumal 2023, section 4.8; Manopt's `checkgradient`. There the slope is that of the longest straight stretch; here
    of the one next to rounding, so that a gradient with a small error is found too.

    >>> from steepest import Stiefel, check_gradient
    >>> x = Stiefel().random_point((4, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> check_gradient(lambda x: (x**4).sum(), Stiefel(), x)
    gradient: right. The error of the Taylor polynomial falls with slope 2.00, expected 2, between t = ... and ...
    """
    manifold, x = place(manifold, x, "x")
    problem = Problem(fun, manifold, gradient, seed=seed)
    at = problem.at(x)
    z = _direction(at, direction)
    claimed = float(at.gradient @ z)
    line = _Line(at, z, False)
    found = line.measure([at.value, claimed])
    findings = [*_repeatable(at), *_invariant(at)]
    if not found.right:
        findings += _about_gradient(line, claimed, found, gradient is None)
        if gradient is not None:
            findings += _against_autograd(at, fun)
    return found.check("gradient", findings, bool(found.right and not findings))


def check_hessian(
    fun: Function,
    manifold: Manifold | None,
    x: Any,
    direction: Any = None,
    *,
    gradient: Callable[[Any], Any] | None = None,
    hvp: Callable[[Any, Any], Any] | None = None,
    seed: int = 0,
) -> Check:
    """Whether products with the Hessian are those of the function at x.

    Along a geodesic, |f(exp(t v)) - f(x) - t <grad f, v> - t^2 <Hess f [v], v> / 2| is O(t^3) for the right Hessian,
    O(t^2) for another, and O(t) where the gradient is wrong already. A Hessian must be symmetric and linear as well.

    Args:
        fun, manifold, gradient, hvp: as `minimize` has them. None for the last two checks autograd's.
        x: a point, better in float64 than in float32. Where geodesics have no formula they are integrated.
        direction: tangent vector v. None: a random one of length one.
        seed: of random directions.

    Returns:
        A `Check`: true or false, with the reasons in its `repr`, and `.plot()`.

    Boumal 2023, section 6.8; Manopt's `checkhessian`, which takes retractions too, that are of second order or start
    at a critical point.

    >>> from steepest import Sphere, check_hessian
    >>> x = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    >>> bool(check_hessian(lambda x: (x**4).sum(), Sphere(), x))
    True
    >>> check = check_hessian(lambda x: (x**4).sum(), Sphere(), x, hvp=lambda x, v: 6 * x**2 * v)
    >>> bool(check), round(check.slope, 1)
    (False, 2.0)
    """
    manifold, x = place(manifold, x, "x")
    problem = Problem(fun, manifold, gradient, hvp, seed)
    problem.curvature = True
    at = problem.at(x)
    z = _direction(at, direction)
    product = at.product(z)
    line = _Line(at, z, True)
    found = line.measure([at.value, float(at.gradient @ z), float(product @ z)])
    findings = [*_repeatable(at), *_invariant(at), *_linear(at, z, product)]
    if not found.right:
        findings += _about_hessian(line, float(product @ z), found)
    return found.check("Hessian", findings, bool(found.right and not findings))


# The curve of errors. -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Found:
    ts: list[float]
    errors: list[float]
    rounding: float
    expected: int
    slope: float
    stretch: tuple[float, float] | None
    right: bool

    def check(self, what: str, findings: list[str], passed: bool) -> Check:
        return Check(
            what,
            passed,
            self.slope,
            self.expected,
            self.ts,
            self.errors,
            self.stretch,
            self.rounding,
            tuple(findings),
        )


class _Line:
    """f along a curve: the retraction of t z, or the geodesic."""

    def __init__(self, at: Iterate, z: Tensor, geodesic: bool) -> None:
        self.at, self.z, self.geodesic = at, z, geodesic
        self.eps = torch.finfo(z.dtype).eps
        self.integrated = geodesic and "exp" not in at.problem.manifold.closed

    def values(self, ts: list[float]) -> list[float]:
        """f at all t."""
        at, manifold = self.at, self.at.problem.manifold
        z = torch.tensor(ts, dtype=self.z.dtype, device=self.z.device)[:, None] * self.z
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            xs = each(lambda t: t.expand(len(ts), *t.shape).contiguous(), at.x)
            f, h = manifold.frame(xs), at.unravel(z)
            ends = manifold.exp(xs, manifold._push(f, h)) if self.geodesic else manifold._move(f, h)
        return at.problem.values(ends)

    def noise(self) -> float:
        """Rounding in f: its second differences over steps so short that the function's own are far below."""
        steps = [self.eps**0.5 * 10.0**-k for k in (1, 2, 3, 4)]
        values = self.values([i * h for h in steps for i in range(6)])
        runs = [values[6 * k : 6 * k + 6] for k in range(len(steps))]
        second = [abs(run[i] - 2 * run[i + 1] + run[i + 2]) for run in runs for i in range(4)]
        return 2 * max([self.eps * abs(values[0]), *(s for s in second if math.isfinite(s))])

    def measure(self, taylor: list[float]) -> _Found:
        """The errors of a Taylor polynomial, and the slope at which they fall."""
        ts, start, values = self._sampled()
        taylor = [start, *taylor[1:]]
        model = [sum(c * t**k / math.factorial(k) for k, c in enumerate(taylor)) for t in ts]
        errors = [abs(v - m) for v, m in zip(values, model, strict=True)]
        rounding, order = self.noise(), len(taylor)
        drift = 1000 * self.eps * self.at.norm if self.integrated else 0.0
        floor = [rounding + drift * t + 4 * self.eps * abs(m) for t, m in zip(ts, model, strict=True)]
        found = _straight(ts, errors, floor)
        if found is None:
            return _Found(ts, errors, rounding, order, math.nan, None, self._negligible(ts, errors, floor, order))
        slope, stretch = found
        return _Found(ts, errors, rounding, order, slope, stretch, slope > order - 0.15)

    def _sampled(self) -> tuple[list[float], float, list[float]]:
        """ts, f at zero, f at the ts. A geodesic that is integrated is followed less far, and not to its end."""
        low = math.log10(self.eps) / 2
        ts = [10.0 ** (low * (1 - i / round(-low * PER_DECADE))) for i in range(round(-low * PER_DECADE) + 1)]
        for limit in [0.1, 0.01, 0.001] if self.integrated else []:
            ts = [t for t in ts if t <= limit * 1.001]
            start, *values = self.values([0.0, *ts])
            if any(map(math.isfinite, values)):
                return ts, start, values
        start, *values = self.values([0.0, *ts])
        return ts, start, values

    def _negligible(self, ts: list[float], errors: list[float], floor: list[float], order: int) -> bool:
        """Whether the errors, mostly below rounding, leave room for none in the last coefficient: then the polynomial
        is exact, as of a function that is one."""
        room = [(e + f) / t ** (order - 1) for t, e, f in zip(ts, errors, floor, strict=True) if math.isfinite(e)]
        return min(room, default=math.inf) <= 1e-3 * max(self.at.norm, abs(self.at.value))


def _straight(ts: list[float], errors: list[float], floor: list[float]) -> tuple[float, tuple[float, float]] | None:
    """Slope and ends of the straight stretch next to rounding, at least a decade long (in single precision, half)."""
    usable = [math.isfinite(e) and e > f for e, f in zip(errors, floor, strict=True)]
    x = [math.log10(t) for t in ts]
    y = [math.log10(e) if u else math.nan for e, u in zip(errors, usable, strict=True)]
    least = PER_DECADE if len(ts) > 5 * PER_DECADE else PER_DECADE // 2
    found: list[tuple[int, int]] = []
    for i in range(len(ts) - least):
        j = i + least + 1
        if found and i > found[0][0] + PER_DECADE:
            break
        if not _line(x[i:j], y[i:j])[1] <= STRAIGHT:
            continue
        while j < len(ts) and _line(x[i : j + 1], y[i : j + 1])[1] <= STRAIGHT:
            j += 1
        found.append((i, j))
    if not found:
        return None
    i, j = max(found, key=lambda ends: ends[1] - ends[0])  # the lowest may be bent by what is left of rounding
    return _line(x[i:j], y[i:j])[0], (ts[i], ts[j - 1])


def _line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Slope of the line of least squares, and how far the worst point is from it."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)
    off = [abs(b - my - slope * (a - mx)) for a, b in zip(x, y, strict=True)]
    return slope, math.nan if any(map(math.isnan, off)) else max(off)


def _direction(at: Iterate, direction: Any) -> Tensor:
    if not at.finite:
        raise ValueError(f"fun: at x its value is {at.value}, its gradient {at.norm}; expected finite numbers")
    if direction is None:
        return _random(at, 0)
    manifold = at.problem.manifold
    with torch.no_grad():
        v = like(at.x, [widen(t.detach()) for t in as_tuple(direction)])
        z = at.conform(at.ravel(manifold._coords(at.frame, v)))
        gap = each(torch.sub, at.push(z), v)
    size = max(float(t.abs().max()) for t in as_tuple(v))
    if not max(float(t.abs().max()) for t in as_tuple(gap)) <= 4 * torch.finfo(z.dtype).eps ** 0.5 * size or not size:
        raise ValueError(
            f"direction: not a tangent vector of {manifold} at x, or zero (on a quotient, not a horizontal one); take "
            "`manifold.random_tangent(x)`, or `manifold.push(x, manifold.coords(x, v))` of yours"
        )
    return z


def _random(at: Iterate, number: int) -> Tensor:
    z = at.random(at.problem.generator(number))
    size = torch.linalg.vector_norm(z)
    if not size > 0:
        raise ValueError(f"x: {at.problem.manifold} has no direction there, its dimension is zero")
    return z / size


# What may be wrong. ---------------------------------------------------------------------------------------------------


UNSEEN = "no straight stretch of the error is above rounding: try float64, another x, or a direction of another length"


def _repeatable(at: Iterate) -> list[str]:
    again = at.problem.value(at.x)
    if abs(again - at.value) <= 1000 * torch.finfo(at.dtype).eps * abs(at.value):
        return []
    return [
        f"fun is not a function: at the same x it was {at.value:.9g}, then {again:.9g}; dropout, or random numbers?"
    ]


def _invariant(at: Iterate) -> list[str]:
    """On a quotient, whether f is a function of what points stand for."""
    rest = float(torch.linalg.vector_norm(at.gradient - at.conform(at.gradient)))
    if rest <= torch.finfo(at.dtype).eps ** 0.5 * at.norm:
        return []
    return [
        f"a share of {rest / at.norm:.1g} of the gradient is along changes of x that do not change what x stands for: "
        f"the function (or its gradient) is not one of `{type(at.problem.manifold).__name__}().represent(x)` alone"
    ]


def _derivatives(line: _Line) -> tuple[float, float, float]:
    """First derivative from the left, from the right, and the second, by differences."""
    t, u = line.eps ** (1 / 3), line.eps**0.25
    a, b, c, d, e = line.values([-u, -t, 0.0, t, u])
    return (c - b) / t, (d - c) / t, (a - 2 * c + e) / u**2


def _about_gradient(line: _Line, claimed: float, found: _Found, auto: bool) -> list[str]:
    left, right, second = _derivatives(line)
    middle = (left + right) / 2
    if math.isnan(found.slope):
        return [UNSEEN]
    near = abs(right - left) <= 4 * line.eps ** (1 / 3) * abs(second) + 1e-3 * abs(middle) + 1e-12
    if not near and abs(right - left) > 1e-2 * max(abs(left), abs(right)):
        return [f"fun has a kink at x: its derivative along v is {left:.4g} from the left, {right:.4g} from the right"]
    findings = [f"along v the function changes at the rate {middle:.9g}, and its gradient says {claimed:.9g}"]
    ratios = [claimed / middle if middle else math.nan]
    for number in (1, 2):
        z = _random(line.at, number)
        left, right, _ = _derivatives(_Line(line.at, z, False))
        ratios.append(float(line.at.gradient @ z) / ((left + right) / 2 or math.nan))
    spread = max(ratios) - min(ratios)
    if spread <= 1e-2 * abs(ratios[0] - 1):
        what = "the sign is wrong" if abs(ratios[0] + 1) < 1e-2 else "a factor is missing or too much"
        findings.append(f"it is {ratios[0]:.6g} times the derivative, in all 3 directions tried: {what}")
    elif auto:
        findings.append(
            "this is autograd's gradient: a backward formula of yours, a `detach`, a `no_grad`, or a place where the "
            "function has no second derivative"
        )
    return findings


def _against_autograd(at: Iterate, fun: Function) -> list[str]:
    """How a given gradient differs from autograd's, where that can be had."""
    try:
        other = Problem(fun, at.problem.manifold).at(at.x)
        right = other.gradient
    except Exception:
        return []
    size = float(torch.linalg.vector_norm(right))
    if not size or not math.isfinite(size):
        return []
    manifold = at.problem.manifold
    given = each(Tensor.detach, at.covector)
    guesses = {
        "it is the conjugate of the gradient in torch's convention, df/dRe + i df/dIm": lambda: manifold._pull(
            at.frame, each(lambda g: g.conj().resolve_conj(), given)
        ),
        "it is the Riemannian gradient already; give the Euclidean one": lambda: manifold._coords(at.frame, given),
    }
    off = float(torch.linalg.vector_norm(at.gradient - right)) / size
    for text, guess in guesses.items():
        with torch.no_grad():
            if float(torch.linalg.vector_norm(at.ravel(guess()) - right)) <= 1e-3 * off * size:
                return [text]
    findings = [f"it differs from autograd's by {off:.2g} of that one's length"]
    if len(as_tuple(given)) > 1:
        pairs = enumerate(zip(as_tuple(given), as_tuple(each(Tensor.detach, other.covector)), strict=True))
        wrong = [str(i) for i, (a, b) in pairs if float((a - b).abs().max()) > 1e-4 * float(b.abs().max())]
        findings.append(f"tensors of the point in which it does: {', '.join(wrong)}")
    return findings


def _linear(at: Iterate, z: Tensor, product: Tensor) -> list[str]:
    """Whether products with the Hessian are symmetric and linear."""
    u = _random(at, 3)
    other, both = at.product(u), at.product(2 * u - 3 * z)
    size = float(torch.linalg.vector_norm(product) + torch.linalg.vector_norm(other))
    limit = 100 * torch.finfo(z.dtype).eps ** 0.5 * size
    findings = []
    a, b = float(product @ u), float(other @ z)
    if not abs(a - b) <= limit:
        findings.append(f"it is not symmetric: <Hess u, v> = {b:.9g}, <u, Hess v> = {a:.9g}")
    off = float(torch.linalg.vector_norm(both - 2 * other + 3 * product))
    if not off <= 10 * limit:
        findings.append(f"it is not linear: Hess(2 u - 3 v) and 2 Hess u - 3 Hess v differ by {off:.2g}")
    return findings


def _about_hessian(line: _Line, claimed: float, found: _Found) -> list[str]:
    if math.isnan(found.slope):
        return [UNSEEN]
    if found.slope < 1.5:
        return ["the gradient is wrong already: see check_gradient"]
    second = _derivatives(line)[2]
    ratio = claimed / second if second else math.nan
    text = f"along the geodesic of v the second derivative is {second:.6g}, and the Hessian says {claimed:.6g}"
    return [text + (f", {ratio:.3g} times that" if math.isfinite(ratio) else "")]
