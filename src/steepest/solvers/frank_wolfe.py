"""Frank and Wolfe's method: descent within a set, without projections onto it."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.symmetric import sym, sym_log, sym_log_derivative, sym_sqrt
from steepest.manifolds.base import Manifold
from steepest.manifolds.spd import SPD, AffineInvariant
from steepest.manifolds.spd.factors import cholesky, square, whiten
from steepest.manifolds.tensors import as_tuple
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.line_search import Armijo, LineSearch, rounding
from steepest.solvers.nystrom import orthonormal
from steepest.solvers.problem import Iterate
from steepest.spec import Spec, tensor_field

BALL = ("exp", "log", "transport")
"""What a ball needs in closed form."""
HALVINGS = 40
"""Of an interval that holds a point of the boundary."""
STEPS = (1.0, 0.5, 0.25, 0.125, 1 / 16, 1 / 64)
"""Shares of the way to a linear oracle's answer that are tried."""


class Region(Spec, abc.ABC):
    """A compact geodesically convex set, by its oracle: its farthest point along a covector."""

    @abc.abstractmethod
    def fault(self, manifold: Manifold, x: Any) -> str:
        """Why it is no region of this manifold, or has not x in it; the empty string where neither is so."""

    def init(self, at: Iterate) -> list[Tensor]:
        """What it keeps of the first point."""
        return []

    @abc.abstractmethod
    def towards(self, at: Iterate, g: Tensor, kept: list[Tensor]) -> Tensor:
        """log(x, Z) `(n,)` for a Z of the set with a low <g, log(x, Z)>: zero if that is not below zero."""

    @abc.abstractmethod
    def excess(self, manifold: Manifold, x: Any, kept: list[Tensor]) -> Tensor:
        """How far outside x is, `(*b,)`; not positive inside."""

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[Region]:
        """Instances."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SPDInterval(Region):
    """Positive definite matrices with L <= X <= U in Loewner's order, under the affine-invariant metric.

    In coordinates at X = K K^T the oracle minimises tr(S log Z) over K^-1 L K^-T <= Z <= K^-1 U K^-T. With P the root
    of the interval's width and S = Q diag(s) Q^T, take Z = L + P Q [s < 0] Q^T P. That is the minimiser
    where S is definite, and where everything commutes; elsewhere it is not (for random S of size 5 it was 3 to 56
    percent short of the minimum). So it is where an iteration starts, of which each step is the exact oracle for the
    derivative D of tr(S log Z), the same formula with P D P for S, and a part of the way to its answer; from whatever
    point, it went to one value in all trials.

    Args:
        lower, upper: L and U, `(n, n)` or with batch dimensions; U - L is positive semidefinite.
        polish: steps of that iteration at most. 0: the formula.

    After Weber and Sra 2017, "Riemannian optimization via Frank-Wolfe methods" (1710.10770), theorem 4.1.

    >>> from steepest.solvers import SPDInterval
    >>> SPDInterval([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]])
    SPDInterval(lower=tensor(2, 2), upper=tensor(2, 2), polish=10)
    """

    lower: Tensor
    upper: Tensor
    polish: int = 10

    def __post_init__(self) -> None:
        lower, upper = tensor_field(self, "lower"), tensor_field(self, "upper")
        check_range("polish", self.polish)
        for name, t in (("lower", lower), ("upper", upper)):
            if t is None or t.ndim < 2 or t.shape[-1] != t.shape[-2]:
                raise ValueError(f"{name}: expected positive definite matrices (..., n, n), got {t}")
        if cholesky(self.lower).isnan().any():
            raise ValueError("lower: not positive definite")
        if self.lower.shape[-1] != self.upper.shape[-1] or _least(self.upper - self.lower).min() < 0:
            raise ValueError("upper: expected matrices of the size of lower, with upper - lower positive semidefinite")

    def fault(self, manifold: Manifold, x: Any) -> str:
        """The manifold has to be SPD(), and x in the interval."""
        if not isinstance(manifold, SPD) or not isinstance(manifold.metric, AffineInvariant):
            return f"with {self} is for SPD() with its affine-invariant metric, not for {manifold}; see GeodesicBall"
        if x.shape[-1] != self.lower.shape[-1]:
            return f"with {self} is for matrices of its size, not for shape {tuple(x.shape)}"
        scale = torch.finfo(x.dtype).eps ** 0.5 * float(x.abs().max())
        if self.excess(manifold, x, []).max() > scale:
            return f"starts inside its set, but x0 is not between lower and upper of {self}; (lower + upper) / 2 is"
        return ""

    def towards(self, at: Iterate, g: Tensor, kept: list[Tensor]) -> Tensor:
        """log Z."""
        k, s = at.frame, sym(at.unravel(g))
        low, high = (sym(whiten(k, t.to(s))) for t in (self.lower, self.upper))
        root = sym_sqrt(high - low)
        z = low + _lowest(root, s)
        value = _trace(s, sym_log(z))
        for _ in range(self.polish):
            answer = low + _lowest(root, root @ sym_log_derivative(z, s) @ root)
            trials = torch.stack([z + t * (answer - z) for t in STEPS])
            values, best = _trace(s, sym_log(trials)).min(0)
            better = values < value - 1e-9 * value.abs()
            if not better.any():
                break
            found = trials.gather(0, best[None, ..., None, None].expand(1, *z.shape))[0]
            z = torch.where(better[..., None, None], found, z)
            value = torch.where(better, values, value)
        return at.ravel(torch.where((value < 0)[..., None, None], sym_log(z), 0))

    def excess(self, manifold: Manifold, x: Any, kept: list[Tensor]) -> Tensor:
        """Minus the least eigenvalue of X - L and of U - X."""
        return -torch.minimum(_least(x - self.lower.to(x)), _least(self.upper.to(x) - x))

    @classmethod
    def examples(cls) -> list[Region]:
        """A wide one."""
        return [cls(0.02 * torch.eye(3, dtype=torch.float64), 20 * torch.eye(3, dtype=torch.float64))]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GeodesicBall(Region):
    """Points at most `radius` from a centre.

    Where the manifold is flat, or x the centre, the oracle's answer lies against the gradient, carried to the centre by
    transport, on the boundary: Z = exp(centre, -radius g / |g|). Elsewhere that is where the iteration u <- -D / |D|
    starts, D the derivative of <g, log(x, exp(centre, radius u))>. In a large ball of a curved manifold that may end
    short of the lowest (a quarter of the way for a radius of 3 on SPD(), where curvature is down to -1/2), and the gap
    is too small by as much; where it finds nothing below zero the answer is the end of the way along -g.

    The set is geodesically convex only where the radius is small enough: below pi/2 on the sphere, any on SPD() and in
    flat space. Leading batch dimensions make one ball in the product.

    Args:
        radius: of the ball.
        centre: a point; a tensor, or a list of tensors where points have several. None: where the run starts.
        refine: steps of the iteration at most.

    >>> from steepest.solvers import GeodesicBall
    >>> GeodesicBall(0.5)
    GeodesicBall(radius=0.5, centre=None, refine=5)
    """

    radius: float
    centre: Tensor | None = None
    refine: int = 5

    def __post_init__(self) -> None:
        tensor_field(self, "centre")
        check_range("radius", self.radius, open_low=True)
        check_range("refine", self.refine)

    def fault(self, manifold: Manifold, x: Any) -> str:
        """Geodesics need formulas, and x has to be in the ball."""
        if missing := [name for name in BALL if name not in manifold.closed]:
            return f"with {self} needs formulas for {', '.join(BALL)}, but {manifold} has none for {', '.join(missing)}"
        if manifold.arity > 1:
            return f"with {self} is for points of one tensor, not for those of {manifold}"
        if self.centre is not None:
            if self.centre.shape != x.shape:
                return f"with {self} needs x0 of the centre's shape, not {tuple(x.shape)}"
            if self.excess(manifold, x, []).max() > torch.finfo(x.dtype).eps ** 0.5:
                return f"starts inside its set, but x0 is farther from the centre than {self.radius:g}"
        return ""

    def init(self, at: Iterate) -> list[Tensor]:
        """The centre."""
        return [at.x.clone()] if self.centre is None else []

    def towards(self, at: Iterate, g: Tensor, kept: list[Tensor]) -> Tensor:
        """log(x, exp(centre, radius u))."""
        manifold, x, centre = at.problem.manifold, at.x, self._centre(at.x, kept)
        there = at.problem.at(centre)
        f = there.frame
        with torch.no_grad():
            moved = manifold._coords(f, manifold.transport(x, centre, at.push(g)))
            u = -_unit(there.ravel(moved))
        best, lowest, last = torch.zeros_like(g), 0.0, math.inf
        for _ in range(self.refine + 1):
            with torch.enable_grad():
                leaf = u.detach().requires_grad_()
                end = manifold.exp(centre, manifold._push(f, there.unravel(self.radius * leaf)))
                z = at.ravel(manifold._coords(at.frame, manifold.log(x, end)))
                value = z @ g
                (slope,) = torch.autograd.grad(value, leaf)
            number = value.item()
            if last < math.inf and not number < last - 1e-9 * abs(last):
                break
            best, lowest = (z.detach(), number) if number < lowest else (best, lowest)
            last, u = number, -_unit(there.conform(slope))
        return best if lowest < 0 else self._straight(at, g, kept)

    def _straight(self, at: Iterate, g: Tensor, kept: list[Tensor]) -> Tensor:
        """The longest -t g within the ball, by bisection: zero where no such way leads into it."""
        manifold, low, high = at.problem.manifold, 0.0, 2 * self.radius
        p = -_unit(g)
        for _ in range(HALVINGS):
            t = (low + high) / 2
            end = manifold.exp(at.x, at.push(t * p))
            low, high = (t, high) if bool(self.excess(manifold, end, kept) <= 0) else (low, t)
        return low * p

    def excess(self, manifold: Manifold, x: Any, kept: list[Tensor]) -> Tensor:
        """Distance from the centre, less the radius; of a batch as one point."""
        with torch.no_grad():
            return torch.linalg.vector_norm(manifold.dist(self._centre(x, kept), x)) - self.radius

    def _centre(self, x: Tensor, kept: list[Tensor]) -> Tensor:
        return kept[0] if self.centre is None else self.centre.to(x)

    @classmethod
    def examples(cls) -> list[Region]:
        """Around the start."""
        return [cls(1.0)]


@dataclasses.dataclass(frozen=True)
class _ConditionalGradient(Method):
    """What the variants share: the step towards the oracle's answer."""

    region: Region
    line_search: LineSearch | None = None
    gap: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "region", Region.from_spec(self.region))
        check_range("gap", self.gap)
        if self.line_search is not None:
            object.__setattr__(self, "line_search", LineSearch.from_spec(self.line_search))
            if not isinstance(self.line_search, Armijo):
                raise TypeError(
                    f"line_search: got {self.line_search}, expected Armijo(...), which can be told not to "
                    "leave the set, or None"
                )

    @abc.abstractmethod
    def slopes(self, at: Iterate, state: State) -> Tensor:
        """A gradient at the point, `(n,)`."""

    def fault(self, manifold: Manifold, x: Any) -> str:
        """The region's."""
        return self.region.fault(manifold, x)

    def init(self, at: Iterate) -> State:
        """What the region keeps; the first step tried goes all of the way."""
        return {"region": self.region.init(at), "step": 1.0, "gradient": None}

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """Part of the geodesic to the oracle's answer."""
        g = self.slopes(at, state)
        z = self.region.towards(at, g, state["region"])
        gap = -float(g @ z)
        if gap <= max(self.gap, rounding(at)):
            raise Stop(f"the gap is at most {self.gap:g}, or rounding", True)
        t, to = self._along(at, z, -gap, state)
        kept = at.carry(g, to) if state["gradient"] is not None or self._averages else None
        return to, {**state, "step": min(2 * t, 1.0), "gradient": kept, "note": {"step": t, "gap": gap}}

    @property
    def steady(self) -> bool:
        """Not in an open loop."""
        return self.order > 0 and self.line_search is not None

    @property
    def _averages(self) -> bool:
        return False

    def _along(self, at: Iterate, z: Tensor, slope: float, state: State) -> tuple[float, Iterate]:
        def path(t: float) -> Iterate:
            with torch.no_grad():
                return at.problem.at(at.problem.manifold.exp(at.x, at.push(min(t, 1.0) * z)))

        if isinstance(self.line_search, Armijo):
            found = self.line_search.along(path, at, slope, state["step"])
            if found is None:
                raise Stop("no step decreases the function: rounding, or a gradient that is not its gradient")
            return min(found[0], 1.0), found[1]
        for t in _halved(2 / (state["iteration"] + 2)):
            to = path(t)
            if math.isfinite(to.value):
                return t, to
        raise Stop("the function is not finite towards the oracle's answer")


@dataclasses.dataclass(frozen=True)
class FrankWolfe(_ConditionalGradient):
    """Goes from x part of the geodesic to the point Z of a set at which <grad f(x), log(x, Z)> is least.

    -<grad f, log(x, Z)>, the gap, bounds f(x) - f* where f is geodesically convex; it is in the table, and the run
    succeeds where it is small. All points lie in the set if the first does. Errors fall like 1/k. Where the
    minimiser lies within a face of the set's boundary, a line search does not change that, for its steps zigzag between
    corners, and the open loop may well be the faster one.

    Args:
        region: the set: `SPDInterval(L, U)` or `GeodesicBall(radius)`.
        line_search: `Armijo()`, along the geodesic. None: the open loop, 2 / (k + 2) of the way in the k-th step, from
            zero on, whatever the values are.
        gap: at which to stop.

    Weber and Sra 2017, "Riemannian optimization via Frank-Wolfe methods" (1710.10770), algorithm 2.

    >>> from steepest import SPD, minimize
    >>> from steepest.solvers import Armijo, FrankWolfe, SPDInterval
    >>> y = torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, 4.0]))]).double()
    >>> method = FrankWolfe(SPDInterval(y.inverse().mean(0).inverse(), y.mean(0)), Armijo(refine=True))
    >>> cost = lambda x: SPD().dist(x.expand(2, 2, 2), y).square().sum()
    >>> result = minimize(cost, y.mean(0), SPD(), method, max_iterations=20)
    >>> (result.x - SPD().mean(y)).abs().max().item() < 0.02
    True
    """

    order: ClassVar[int] = 1
    accuracy: ClassVar[float | None] = 1e-4

    def slopes(self, at: Iterate, state: State) -> Tensor:
        """The Riemannian gradient."""
        return at.gradient

    @classmethod
    def examples(cls) -> list[Method]:
        """In a ball; intervals have too many corners for quick tests."""
        return [cls(GeodesicBall(1.0), Armijo(refine=True))]


@dataclasses.dataclass(frozen=True)
class ZerothOrderFrankWolfe(_ConditionalGradient):
    """`FrankWolfe` with the gradient estimated from values.

    g = mean of (f(R(mu u)) - f(R(-mu u))) / (2 mu) u over random directions u, along the retraction R; all values in
    one call. From all directions of an orthonormal basis, as their sum, that is the gradient up to mu^2. From few of
    them it is averaged over the steps, d <- (1 - r) d + r g, r = 4 / (k + 8)^(2/3), with d carried along: the oracle is
    given d, whose error goes to zero. Points at which f is asked lie up to mu |u| outside of the set.

    Args:
        region, line_search, gap: as in `FrankWolfe`.
        directions: Gaussian ones in each step. None: a basis.
        smoothing: mu. None: the third root of the precision, where the two errors of a central difference meet.

    Li, Balasubramanian and Ma 2020 (2003.11238), the estimate on manifolds; Mokhtari, Hassani and Karbasi 2018
    (1804.09554), the average; Weber and Sra 2017 (1710.10770), the method.

    >>> from steepest import minimize
    >>> from steepest.solvers import Armijo, GeodesicBall, ZerothOrderFrankWolfe
    >>> method = ZerothOrderFrankWolfe(GeodesicBall(1.0), Armijo())
    >>> result = minimize(lambda x: (x - 2).square().sum(), torch.zeros(1, 4, dtype=torch.float64), method=method)
    >>> result.x.numpy().round(2)
    array([[0.5, 0.5, 0.5, 0.5]])
    """

    directions: int | None = None
    smoothing: float | None = None

    order: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("directions", 1 if self.directions is None else self.directions, 1)
        check_range("smoothing", 1 if self.smoothing is None else self.smoothing, open_low=True)

    @property
    def _averages(self) -> bool:
        return self.directions is not None

    def slopes(self, at: Iterate, state: State) -> Tensor:
        """The estimate, or the average."""
        mu = self.smoothing or torch.finfo(at.dtype).eps ** (1 / 3)
        generator = at.problem.generator(state["iteration"], device=as_tuple(at.x)[0].device)
        u = at.random(generator, self.directions or at.size)
        if self.directions is None:
            u = orthonormal(u)
        rises = _values(at, mu * torch.cat([u, -u])).reshape(2, -1)
        g = ((rises[0] - rises[1]) / (2 * mu)) @ u
        if self.directions is None:
            return g
        rate = min(4 / (state["iteration"] + 8) ** (2 / 3), 1.0) if state["gradient"] is not None else 1.0
        g = g / self.directions
        return g if rate == 1 else (1 - rate) * state["gradient"] + rate * g

    @classmethod
    def examples(cls) -> list[Method]:
        """A basis of directions."""
        return [cls(GeodesicBall(1.0), Armijo(refine=True))]


def _values(at: Iterate, z: Tensor) -> Tensor:
    """f at the ends of steps `(k, n)`; where it is not finite, as at the point itself."""
    manifold = at.problem.manifold
    with torch.no_grad():
        x = torch.vmap(lambda z: manifold._move(at.frame, at.unravel(z)))(z)
    values = torch.tensor(at.problem.values(x), dtype=torch.float64, device=z.device)
    return torch.where(values.isfinite(), values, at.value).to(z)


def _halved(t: float) -> Iterator[float]:
    for _ in range(40):
        yield t
        t /= 2


def _lowest(root: Tensor, s: Tensor) -> Tensor:
    """P Q [s < 0] Q^T P, for S = Q diag(s) Q^T."""
    w, q = torch.linalg.eigh(sym(s))
    return square(root @ (q * (w < 0).unsqueeze(-2)))


def _trace(s: Tensor, z: Tensor) -> Tensor:
    return (s.conj() * z).real.sum((-2, -1))


def _least(m: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(m)[..., 0]


def _unit(z: Tensor) -> Tensor:
    return z / torch.linalg.vector_norm(z).clamp_min(torch.finfo(z.dtype).tiny)
