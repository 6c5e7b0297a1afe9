"""Matrices of bounded, and of fixed, spectral norm."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg import double, widen
from steepest.linalg.scalars import Scalar
from steepest.linalg.symmetric import sym_function
from steepest.manifolds.base import Manifold


@dataclasses.dataclass(frozen=True)
class SpectralBall(Manifold):
    """Matrices X `(*b, m, n)` of spectral norm at most r, the largest singular value: layers with Lipschitz constant at
    most r. A convex set with a boundary, not a manifold without one.

    The metric is the Euclidean one and the frame the identity, `push(X, h) = h`, at the boundary too: a step X + h that
    leaves the ball is brought back to the nearest point of it, all singular values above r cut to r, and one that stays
    is left as it is. This is projected descent. At the boundary `retract` is of first order only for steps that lead
    inside, and the gradient at a minimiser need not vanish: it points inwards along the normals. Gradient descent, with
    momentum or without, rests there. An optimiser that turns the gradient (Adam, Muon) does not, where it turns it away
    from the normals: it keeps the bound, but a minimiser on the boundary may not be where it comes to rest.

    Cutting is X - X phi(X^H X) with phi(w) = max(0, 1 - r / sqrt(w)), by one eigendecomposition of the smaller Gram
    matrix in float64 instead of an SVD: differentiable also where singular values are equal, except where one crosses
    r. Its error is that of float64 times the square of |X + h| / r.

    Args:
        radius: r, positive.

    Yoshida and Miyato 2017 (1705.10941) and Gouk, Frank, Pfahringer and Cree 2021 (1804.04368) for layers of bounded
    spectral norm; Pethick et al. 2025 (2502.07529) for training in norm balls. That cutting gives the nearest point in
    the Frobenius norm is von Neumann's trace inequality.

    >>> x = torch.diag(torch.tensor([0.5, 0.9]))
    >>> SpectralBall().retract(x, x).diagonal().tolist()
    [1.0, 1.0]
    """

    radius: float = 1.0

    identity_carry: ClassVar[bool] = True
    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")
    parallel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("radius", self.radius, open_low=True)

    def _push(self, x: Tensor, h: Tensor) -> Tensor:
        return h

    def _pull(self, x: Tensor, g: Tensor) -> Tensor:
        return g

    def _coords(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def _carry(self, x: Tensor, to: Tensor, h: Tensor) -> Tensor:
        return h

    def _move(self, x: Tensor, h: Tensor) -> Tensor:
        return _cut(x + h, self.radius)

    def _decay(self, x: Tensor, h: Tensor, rate: float) -> Tensor:
        return h + rate * x

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """X + V, the end of a straight line; NaN where that lies outside, by more than rounding."""
        y = x + v
        outside = self.residual(y.detach()) > 64 * torch.finfo(y.dtype).eps
        return torch.where(outside[..., None, None], torch.nan, y)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """Y - X: between any two points, as the ball is convex."""
        return y - x

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Frobenius norm of Y - X, shape `(*b,)`."""
        return torch.linalg.vector_norm(y - x, dim=(-2, -1))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """v itself."""
        return v

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """`gv`."""
        return gv

    def project(self, x: Tensor) -> Tensor:
        """The nearest point: singular values above r cut to r."""
        return _cut(_cut(x, self.radius), self.radius)  # again, for what is left of a norm far above r by rounding

    def residual(self, x: Tensor) -> Tensor:
        """`|X| / r - 1` in the spectral norm, at least zero."""
        return (_norm(x) / self.radius - 1).clamp_min(0)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """A Gaussian matrix divided by its spectral norm, times r / 2: well inside."""
        x = torch.randn(shape, generator=generator, **kwargs)
        return x * (self.radius / 2 / _norm(x)).to(x)[..., None, None]

    def shape_error(self, x: Tensor) -> str:
        """Matrices."""
        return _shape_error(self, x)

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """m n."""
        return math.prod(shape[-2:]) * (2 if scalars == "complex" else 1)

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Tall, wide, a single column."""
        return [(cls(3.0), (4, 3)), (cls(), (2, 5)), (cls(4.0), (3, 1))]


class SphereFrame(NamedTuple):
    """The point x and the unit normal, u v^H for the largest singular value."""

    x: Tensor
    normal: Tensor


@dataclasses.dataclass(frozen=True)
class SpectralSphere(Manifold):
    """Matrices X `(*b, m, n)` of spectral norm r: the boundary of `SpectralBall`, a smooth hypersurface where the
    largest singular value is simple, with edges where it is not.

    The metric is the Euclidean one. With u and v the singular vectors of the largest singular value, u v^H is the unit
    normal, and the coordinates are one block: `push(X, h) = h - u v^H Re(u^H h v)`. Where k singular values share the
    largest value, the mean of their u v^H, times sqrt k, stands for it. The retraction is r (X + V) / |X + V|.

    The normal comes from two eigendecompositions of the smaller Gram matrix in float64, as X times the projector onto
    v, so that its derivatives see no gap but the one below the largest singular value. They grow as this gap shrinks;
    and so does the curvature: geodesics, logarithms and distances, which are integrated, end at an edge.

    Args:
        radius: r, positive.

    Miyato et al. 2018 (1802.05957) for layers divided by their spectral norm; Watson 1992 for the derivative of the
    norm.

    >>> x = SpectralSphere(2.0).random_point((4, 3))
    >>> round(torch.linalg.matrix_norm(x, 2).item(), 4)
    2.0
    """

    radius: float = 1.0

    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")

    def __post_init__(self) -> None:
        check_range("radius", self.radius, open_low=True)

    def frame(self, x: Tensor) -> SphereFrame:
        """The point and its unit normal."""
        return SphereFrame(x, _top(x))

    def _push(self, f: SphereFrame, h: Tensor) -> Tensor:
        return h - f.normal * _along(f.normal, h)

    def _pull(self, f: SphereFrame, g: Tensor) -> Tensor:
        return self._push(f, g)

    def _coords(self, f: SphereFrame, v: Tensor) -> Tensor:
        return v

    def _conform(self, f: SphereFrame, h: Tensor) -> Tensor:
        return self._push(f, h)

    def _move(self, f: SphereFrame, h: Tensor) -> Tensor:
        y = f.x + self._push(f, h)
        return y * (self.radius / _along(_top(y), y))

    def project(self, x: Tensor) -> Tensor:
        """A nearest point: singular values above r cut to r, or the largest raised to r. Not unique where several are
        the largest, and below r."""
        inside = SpectralBall(self.radius).project(x)
        normal = _top(inside)
        return inside + normal * (self.radius - _along(normal, inside)).clamp_min(0)

    def residual(self, x: Tensor) -> Tensor:
        """`| |X| / r - 1 |` in the spectral norm."""
        return (_norm(x) / self.radius - 1).abs()

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """A Gaussian matrix divided by its spectral norm, its other singular values halved, times r: away from the
        edges."""
        x = torch.randn(shape, generator=generator, **kwargs)
        top = _top(x)
        return self.radius * (x / _along(top, x) + top) / 2

    def shape_error(self, x: Tensor) -> str:
        """Matrices."""
        return _shape_error(self, x)

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """One less than the entries."""
        return math.prod(shape[-2:]) * (2 if scalars == "complex" else 1) - 1

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Tall, wide."""
        return [(cls(3.0), (4, 3)), (cls(), (2, 5))]


def _along(n: Tensor, h: Tensor) -> Tensor:
    return (n.conj() * h).real.sum((-2, -1), keepdim=True)


def _norm(x: Tensor) -> Tensor:
    """Spectral norm, shape `(*b,)`; NaN where an entry is not finite."""
    finite = (x * 0).sum((-2, -1)).real
    return torch.linalg.svdvals(widen(torch.where(x.isfinite(), x, 0)))[..., 0].to(finite) + finite


def _shape_error(m: Manifold, x: Tensor) -> str:
    if x.ndim >= 2 and x.numel():
        return ""
    return f"shape {tuple(x.shape)} is not (..., m, n): a point of {m} is a matrix with at least one entry"


# Functions of singular values, as functions of the smaller Gram matrix. -----------------------------------------------


def _excess_slope(a: Tensor, b: Tensor) -> Tensor:
    """phi[a, b] for a <= b: of one smooth piece on either side of one, across it the plain quotient."""
    above = 1 / (a * b.sqrt() + b * a.sqrt())
    across = (1 - b.rsqrt()).clamp_min(0) / (b - a)
    return torch.where(a > 1, above, torch.where(b > 1, across, 0))


def _excess_taylor(x: Tensor, k: int, m: int) -> Tensor:
    binomial = math.prod((-0.5 - i) / (i + 1) for i in range(k + m))
    return torch.where(x > 1, -binomial * x ** (-0.5 - k), 0)


EXCESS = Scalar(lambda w: (1 - w.rsqrt()).clamp_min(0), _excess_slope, _excess_taylor)
"""phi(w) = max(0, 1 - 1 / sqrt(w)), the part of a singular value sqrt(w) that exceeds one."""

STEP = Scalar(
    lambda w: (w >= 0).to(w.dtype),
    lambda a, b: torch.where((a < 0) & (b >= 0), 1 / (b - a), 0),
    lambda x, k, m: torch.zeros_like(x),
    scale=torch.ones_like,
    positive=False,
)
"""One for w >= 0, zero below; for arguments at least 1 / 2 away from the step."""


def _gram(x: Tensor) -> Tensor:
    """The smaller one of x^H x and x x^H, in float64."""
    x = double(x)
    return x @ x.mH if x.shape[-2] < x.shape[-1] else x.mH @ x


def _times(x: Tensor, function: Tensor) -> Tensor:
    """x f(x^H x) = f(x x^H) x, given f of the smaller."""
    function = function.to(x.dtype)
    return function @ x if x.shape[-2] < x.shape[-1] else x @ function


def _cut(x: Tensor, radius: float) -> Tensor:
    """x with its singular values above the radius replaced by it."""
    return x - _times(x, sym_function(_gram(x) / radius**2, EXCESS))


def _top(x: Tensor) -> Tensor:
    """u v^H for the largest singular value, of Frobenius norm one; of equal ones the mean, scaled to norm one."""
    gram = _gram(x)
    w = torch.linalg.eigvalsh(gram.detach())
    first = w[..., -1:]
    second = w[..., -2:-1] if w.shape[-1] > 1 else 0 * first
    gap = (first - second).clamp_min(torch.finfo(w.dtype).tiny).unsqueeze(-1)
    eye = torch.eye(w.shape[-1], dtype=gram.dtype, device=gram.device)
    projector = sym_function((gram - (first + second).unsqueeze(-1) / 2 * eye) / gap, STEP)
    part = _times(x, projector)
    return part / torch.linalg.vector_norm(part, dim=(-2, -1), keepdim=True)
