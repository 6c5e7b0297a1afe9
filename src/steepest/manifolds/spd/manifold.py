"""Positive definite matrices, and what a Riemannian metric on them is."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg import sym
from steepest.manifolds.base import OPERATIONS, Manifold
from steepest.manifolds.spd.factors import square
from steepest.spec import Spec


class SPDMetric(Spec, abc.ABC):
    """A Riemannian metric on the Hermitian positive definite matrices X `(*b, n, n)`: a field of `SPD`, by value.

    It gives the orthonormal frame at X (the contract is that of `Manifold`), as functions of what `frame(x)` computed
    once. Coordinates are one matrix `(*b, n, n)`. Geodesics and all that follows from them are found numerically unless
    the metric overrides `exp`, `log`, `dist`, `transport`, `hessian` or `mean` by a formula; `closed` tells for which.

    To write a metric, give the abstract methods; where geodesics have a formula, `exp` and `step`. One that depends on
    the eigenvalues alone needs only a function of two numbers: see `KernelMetric`.

    >>> from steepest.manifolds import BuresWasserstein, LogEuclidean
    >>> SPD("log-euclidean") == SPD(LogEuclidean())
    True
    >>> x, y = torch.eye(2), 4 * torch.eye(2)
    >>> round(BuresWasserstein().dist(x, y).item(), 4)
    1.4142
    """

    name: ClassVar[str] = ""
    """A short name for the metric with its default fields, where it has one."""
    identity_carry: ClassVar[bool] = False
    """Whether `carry` returns conforming coordinates as they are."""
    parallel: ClassVar[bool] = False
    """Whether `transport` is the parallel one."""

    # What every metric gives. -----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def frame(self, x: Tensor) -> Any:
        """What the methods below need of the point, computed once; NaN where x is not positive definite."""

    @abc.abstractmethod
    def cholesky(self, f: Any) -> Tensor:
        """The Cholesky factor of the point, from its frame."""

    @abc.abstractmethod
    def push(self, f: Any, h: Tensor) -> Tensor:
        """Coordinates -> Hermitian tangent vector."""

    @abc.abstractmethod
    def pull(self, f: Any, g: Tensor) -> Tensor:
        """Euclidean gradient -> coordinates, the adjoint of `push`."""

    @abc.abstractmethod
    def coords(self, f: Any, v: Tensor) -> Tensor:
        """Tangent vector -> coordinates, the right inverse of `push`."""

    def conform(self, f: Any, h: Tensor) -> Tensor:
        """Projection of coordinates onto the range of `pull`: by default that is the Hermitian matrices."""
        return sym(h)

    def carry(self, f: Any, to: Any, h: Tensor) -> Tensor:
        """First-order state from the frame f to the frame `to`."""
        return h if self.identity_carry else self.conform(to, h)

    def decay(self, f: Any, h: Tensor, rate: float) -> Tensor:
        """h plus `rate` times the coordinates of X itself."""
        return h + rate * self.coords(f, square(self.cholesky(f))).to(h.dtype)

    def shape_error(self, x: Tensor) -> str:
        """Why the square x does not fit the metric's own fields; the empty string where it does."""
        return ""

    @classmethod
    def examples(cls) -> list[tuple[SPDMetric, tuple[int, int]]]:
        """Instances with shapes of points: what the common suite runs on."""
        return [(cls(), (3, 3))]

    # Steps. -----------------------------------------------------------------------------------------------------------

    @property
    def retractions(self) -> tuple[str, ...]:
        """Names of the retractions that stay among the positive definite matrices, the default first."""
        return ("exp", "second_order") if "exp" in self.closed else ("second_order",)

    def step(self, f: Any, h: Tensor) -> Tensor:
        """`exp(x, push(x, h))` at the frame f."""
        return self.exp(square(self.cholesky(f)), self.push(f, h))

    def second_order(self, f: Any, h: Tensor) -> Tensor:
        """X + V + V X^-1 V / 2 with V = push(h): the mean of X = L L^H and of (L + V L^-H) (L + V L^-H)^H."""
        L = self.cholesky(f)
        lifted = torch.linalg.solve_triangular(L, self.push(f, h).to(L.dtype), upper=False).mH
        return (0.5 * (square(L) + square(L + lifted))).to(h.dtype)

    # By other formulas where there are such that cost less. -----------------------------------------------------------

    def grad(self, x: Tensor, g: Tensor) -> Tensor:
        """Riemannian gradient, `push(pull(g))`."""
        f = self.frame(x)
        return self.push(f, self.pull(f, g))

    def second_order_step(self, x: Tensor, v: Tensor) -> Tensor:
        """`second_order` for a tangent vector v at x."""
        f = self.frame(x)
        return self.second_order(f, self.coords(f, v))

    # Geodesics, and what follows from them: by formula where overridden. ----------------------------------------------

    @property
    def closed(self) -> frozenset[str]:
        """Those operations for which the metric has a formula of its own."""
        return frozenset(name for name in OPERATIONS if getattr(type(self), name) is not getattr(SPDMetric, name))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic that leaves x with velocity v."""
        return Manifold.exp(SPD(self), x, v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The v with `exp(x, v) == y`."""
        return Manifold.log(SPD(self), x, y)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Length of the shortest geodesic from x to y, shape `(*b,)`."""
        return Manifold.dist(SPD(self), x, y)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """v, tangent at x, as a tangent vector at y."""
        return Manifold.transport(SPD(self), x, y, v)

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """Riemannian Hessian times v, from the Euclidean gradient g and the Euclidean Hessian times v."""
        return Manifold.hessian(SPD(self), x, g, gv, v)

    def mean(self, points: Tensor, weights: Tensor | None = None) -> Tensor:
        """Karcher mean of points stacked along a new first dimension."""
        return Manifold.mean(SPD(self), points, weights)


@dataclasses.dataclass(frozen=True)
class SPD(Manifold):
    """Symmetric, or complex Hermitian, positive definite matrices X `(*b, n, n)` under a metric of your choice.

    The metric gives the frame, and with it geodesics, distances and means. Both retractions are positive definite by
    construction, as products of a matrix with its adjoint, however large the step.

    | metric | name | closed form of |
    |---|---|---|
    | `AffineInvariant` (default) | "affine-invariant" | exp, log, dist, parallel transport, Hessian |
    | `LogEuclidean`, flat | "log-euclidean" | the same, and mean |
    | `LogCholesky`, flat | "log-cholesky" | the same, and mean |
    | `BuresWasserstein` | "bures-wasserstein" | exp, log, dist |
    | `PowerDeformed` | | what the metric has that it deforms |
    | `AlphaProcrustes` | | exp, log, dist |
    | `MeanKernel`, your own `KernelMetric` | | nothing: integrated numerically |

    Args:
        metric: an `SPDMetric`, or the short name of one; kept as the `SPDMetric`.
        retraction: "exp", along the metric's geodesic, where that has a formula; "second_order", X + V + V X^-1 V / 2,
            which needs none. None: the first that the metric has.

    Jeuris, Vandebril and Vandereycken 2012 (second-order retraction); for the metrics, see each.

    >>> x = torch.eye(2)
    >>> round(SPD().dist(x, torch.e * x).item(), 4)
    1.4142
    >>> SPD("log-cholesky").metric
    LogCholesky()
    """

    metric: SPDMetric | str = "affine-invariant"
    retraction: str | None = None

    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", _metric(self.metric))
        known = self._m.retractions
        if self.retraction is None:
            object.__setattr__(self, "retraction", known[0])
        if self.retraction not in known:
            raise ValueError(
                f"retraction: got {self.retraction!r}, expected one of {', '.join(known)} under {self.metric}"
                + (", whose geodesics have no formula" if self.retraction == "exp" else "")
            )

    @property
    def _m(self) -> SPDMetric:
        return self.metric  # type: ignore[return-value]  # no longer a name

    @property
    def identity_carry(self) -> bool:
        """The metric's."""
        return self._m.identity_carry

    @property
    def parallel(self) -> bool:
        """The metric's."""
        return self._m.parallel

    @property
    def closed(self) -> frozenset[str]:
        """The metric's."""
        return self._m.closed

    def frame(self, x: Tensor) -> Any:
        """The metric's frame at x; NaN where x is not positive definite."""
        return self._m.frame(x)

    def _push(self, f: Any, h: Tensor) -> Tensor:
        return self._m.push(f, h)

    def _pull(self, f: Any, g: Tensor) -> Tensor:
        return self._m.pull(f, g)

    def _coords(self, f: Any, v: Tensor) -> Tensor:
        return self._m.coords(f, v)

    def _conform(self, f: Any, h: Tensor) -> Tensor:
        return self._m.conform(f, h)

    def _carry(self, f: Any, to: Any, h: Tensor) -> Tensor:
        return self._m.carry(f, to, h)

    def _move(self, f: Any, h: Tensor) -> Tensor:
        return self._m.step(f, h) if self.retraction == "exp" else self._m.second_order(f, h)

    def _decay(self, f: Any, h: Tensor, rate: float) -> Tensor:
        return self._m.decay(f, h, rate)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """A point y = x + v + O(|v|^2), for v tangent at x."""
        return self._m.exp(x, v) if self.retraction == "exp" else self._m.second_order_step(x, v)

    def grad(self, x: Tensor, g: Tensor) -> Tensor:
        """Riemannian gradient: the tangent vector of steepest ascent for the Euclidean gradient g."""
        return self._m.grad(x, g)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic that leaves x with velocity v."""
        return self._m.exp(x, v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The v with `exp(x, v) == y`."""
        return self._m.log(x, y)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Geodesic distance, shape `(*b,)`."""
        return self._m.dist(x, y)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """v, tangent at x, as a tangent vector at y; the parallel transport where `parallel`."""
        return self._m.transport(x, y, v)

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """Riemannian Hessian times v, from the Euclidean gradient g and the Euclidean Hessian times v."""
        return self._m.hessian(x, g, gv, v)

    def mean(self, points: Tensor, weights: Tensor | None = None) -> Tensor:
        """Karcher mean of points stacked along a new first dimension: of `Manifold.mean`, by the metric's formula where
        it has one."""
        return self._m.mean(points, weights)

    def project(self, x: Tensor) -> Tensor:
        """Hermitian part with eigenvalues raised to at least `sqrt(eps)` times the largest: the set is open, so there
        is no nearest point, and this one can be computed with."""
        w, v = torch.linalg.eigh(sym(x))
        floor = torch.finfo(x.dtype).eps ** 0.5 * w[..., -1:].clamp_min(0)
        return square(v * torch.maximum(w, floor).sqrt().unsqueeze(-2))

    def residual(self, x: Tensor) -> Tensor:
        """Asymmetry relative to the largest entry; infinite where the Hermitian part is not positive definite."""
        asymmetry = (x - x.mH).abs().amax((-2, -1)) / x.abs().amax((-2, -1))
        _, info = torch.linalg.cholesky_ex(sym(x))
        return torch.where(info == 0, asymmetry, torch.inf)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """A Gaussian matrix times its adjoint, scaled to trace about n, plus a tenth of the identity."""
        a = torch.randn(shape, generator=generator, **kwargs)
        return square(a) / shape[-1] + 0.1 * torch.eye(shape[-1], dtype=a.dtype, device=a.device)

    def shape_error(self, x: Tensor) -> str:
        """Square matrices, of the size that the metric's own matrices have."""
        if x.ndim < 2 or x.shape[-2] != x.shape[-1]:
            return f"shape {tuple(x.shape)} is not (..., n, n): a symmetric matrix is square"
        return self._m.shape_error(x)

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """n (n + 1) / 2; n^2 for Hermitian matrices."""
        n = shape[-1]
        return n * n if scalars == "complex" else n * (n + 1) // 2

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Every metric that is known, in every example of its own, under each of its retractions."""
        found: list[tuple[Manifold, Any]] = [(cls(), (1, 1))]
        for _, family in sorted(SPDMetric.known.items()):
            for i, (metric, shape) in enumerate(family.examples()):
                names = metric.retractions if i == 0 else metric.retractions[:1]
                found += [(cls(metric, name), shape) for name in names]
        return found


def _metric(metric: SPDMetric | str) -> SPDMetric:
    """The metric that a short name stands for; a metric as it is."""
    if isinstance(metric, SPDMetric):
        return metric
    names = {family.name: family for family in SPDMetric.known.values() if family.name}
    if metric in names:
        return names[metric]()
    hint = f". That is a retraction: SPD(retraction={metric!r})" if metric in ("exp", "second_order") else ""
    raise ValueError(f"metric: got {metric!r}, expected an SPDMetric or one of {', '.join(sorted(names))}{hint}")
