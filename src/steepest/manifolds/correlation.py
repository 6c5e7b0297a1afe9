"""Correlation matrices of full rank."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from steepest.linalg import double, skew, sym, sym_exp, sym_log
from steepest.manifolds.base import Manifold
from steepest.manifolds.implicit import fixed_point, with_derivatives
from steepest.manifolds.spd.factors import cholesky, whiten


@dataclasses.dataclass(frozen=True)
class Correlation(Manifold):
    """Correlation matrices C `(*b, n, n)`: positive definite, with ones on the diagonal.

    "log-euclidean-cholesky": C = L L^T, and the logarithm of the unit triangular diag(L)^-1 L is any strictly lower
    triangular N; the metric is the Frobenius one of N, flat, with everything in closed form and a unique mean. The
    coordinates are skew matrices A, N moving by sqrt 2 times the lower triangle of A.

    "quotient-affine": C stands for all D C D, D diagonal and positive, and the metric is the affine-invariant one of
    the nearest among them. `push(C, S) = V - (diag(V) C + C diag(V)) / 2` with V = L sym(S) L^T. It does not depend on
    the order of the variables; `exp` is closed, `log` finds the best D by iteration.

    Args:
        metric: "log-euclidean-cholesky" or "quotient-affine".

    David and Gu 2019 (quotient-affine); Thanwerdas and Pennec 2022 (2201.06282), sections 3 and 4.

    >>> c = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    >>> round(Correlation().dist(c, torch.eye(2)).item(), 4)  # 0.5 / sqrt(1 - 0.25)
    0.5774
    """

    metric: str = "log-euclidean-cholesky"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric: unknown {self.metric!r}, expected one of {', '.join(METRICS)}")

    @property
    def _geometry(self) -> _Geometry:
        return METRICS[self.metric]

    @property
    def blocks(self) -> tuple[str, ...]:
        """A skew or a symmetric matrix."""
        return (self._geometry.block,)

    @property
    def identity_carry(self) -> bool:
        """Skew here is skew there."""
        return self._geometry.flat

    @property
    def parallel(self) -> bool:
        """With the flat metric."""
        return self._geometry.flat

    @property
    def closed(self) -> frozenset[str]:
        """All but the parallel transport of the quotient-affine metric."""
        return frozenset({"exp", "log", "dist"} | ({"transport"} if self._geometry.flat else set()))

    def frame(self, x: Tensor) -> Any:
        """N, or the factors of C."""
        return self._geometry.frame(x)

    def _push(self, f: Any, h: Tensor) -> Tensor:
        return self._geometry.push(f, h)

    def _pull(self, f: Any, g: Tensor) -> Tensor:
        return self._geometry.pull(f, g)

    def _coords(self, f: Any, v: Tensor) -> Tensor:
        return self._geometry.coords(f, v)

    def _conform(self, f: Any, h: Tensor) -> Tensor:
        return self._geometry.conform(f, h)

    def _carry(self, f: Any, to: Any, h: Tensor) -> Tensor:
        return h if self._geometry.flat else self._conform(to, h)

    def _move(self, f: Any, h: Tensor) -> Tensor:
        return self._geometry.move(f, h)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """End of the geodesic that leaves x with velocity v."""
        f = self.frame(double(x))
        return self._move(f, self._coords(f, double(v))).to(x.dtype)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The v with `exp(x, v) == y`; with the quotient-affine metric, the nearest one that the iteration finds."""
        return self._geometry.log(x, y)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Length of `log(x, y)`, shape `(*b,)`."""
        return self._geometry.dist(x, y)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Through the coordinates: with the flat metric the parallel transport."""
        f, to = self.frame(x), self.frame(y)
        return self._push(to, self._carry(f, to, self._coords(f, v)))

    def project(self, x: Tensor) -> Tensor:
        """Symmetric part with eigenvalues raised to at least `sqrt(eps)` times the largest, scaled to unit diagonal:
        a nearby point, not the nearest one (Higham 2002), which lies on the boundary."""
        w, v = torch.linalg.eigh(sym(x))
        floor = torch.finfo(x.dtype).eps ** 0.5 * w[..., -1:].clamp_min(torch.finfo(x.dtype).eps)
        return _unit_diagonal((v * torch.maximum(w, floor).unsqueeze(-2)) @ v.mT)

    def residual(self, x: Tensor) -> Tensor:
        """Largest deviation from symmetry and from the unit diagonal; infinite where x is not positive definite."""
        deviation = torch.maximum((x - x.mT).abs().amax((-2, -1)), (x.diagonal(dim1=-2, dim2=-1) - 1).abs().amax(-1))
        _, info = torch.linalg.cholesky_ex(sym(x))
        return torch.where((info == 0) | deviation.isnan(), deviation, torch.inf)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Uniform among all correlation matrices (Lewandowski, Kurowicka and Joe 2009): row k of the Cholesky factor is
        k Gaussian numbers and the length of n + 1 - k more, scaled to length one."""
        n = shape[-1]
        z = torch.randn((*shape[:-1], n + 1), generator=generator, **kwargs)
        left = torch.ones_like(z).tril(-1)
        rest = torch.linalg.vector_norm(z * (1 - left), dim=-1)
        rows = (z * left)[..., :n] + torch.diag_embed(rest)
        rows = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return _unit_diagonal(rows @ rows.mT)

    def shape_error(self, x: Tensor) -> str:
        """Square matrices."""
        square = x.ndim >= 2 and x.shape[-2] == x.shape[-1]
        return "" if square else f"shape {tuple(x.shape)} is not (..., n, n): a correlation matrix is square"

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """n (n - 1) / 2."""
        return shape[-1] * (shape[-1] - 1) // 2

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Both metrics; 2 x 2, 1 x 1."""
        return [(cls(), (4, 4)), (cls("quotient-affine"), (3, 3)), (cls(), (2, 2)), (cls("quotient-affine"), (2, 2)),
                (cls(), (1, 1)), (cls("quotient-affine"), (1, 1))]  # fmt: skip


class _Geometry(abc.ABC):
    """What a metric computes."""

    block: ClassVar[str]
    flat: ClassVar[bool]

    @abc.abstractmethod
    def frame(self, x: Tensor) -> Any: ...
    @abc.abstractmethod
    def push(self, f: Any, h: Tensor) -> Tensor: ...
    @abc.abstractmethod
    def pull(self, f: Any, g: Tensor) -> Tensor: ...
    @abc.abstractmethod
    def coords(self, f: Any, v: Tensor) -> Tensor: ...
    @abc.abstractmethod
    def conform(self, f: Any, h: Tensor) -> Tensor: ...
    @abc.abstractmethod
    def move(self, f: Any, h: Tensor) -> Tensor: ...
    @abc.abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor: ...
    @abc.abstractmethod
    def dist(self, x: Tensor, y: Tensor) -> Tensor: ...


class _LogEuclideanCholesky(_Geometry):
    """The frame is N; C = cor(expm(N) expm(N)^T)."""

    block = "skew"
    flat = True

    def frame(self, x: Tensor) -> Tensor:
        return _log_factor(x)

    def push(self, f: Tensor, h: Tensor) -> Tensor:
        direction = _lower(h)
        return torch.func.jvp(_from_log_factor, (f.expand_as(direction).contiguous(),), (direction,))[1]

    def pull(self, f: Tensor, g: Tensor) -> Tensor:
        (gradient,) = torch.func.vjp(_from_log_factor, f)[1](g)
        return math.sqrt(2) * skew(gradient.tril(-1))

    def coords(self, f: Tensor, v: Tensor) -> Tensor:
        moved = torch.func.jvp(_log_factor, (_from_log_factor(f),), (v,))[1]
        return math.sqrt(2) * skew(moved)

    def conform(self, f: Tensor, h: Tensor) -> Tensor:
        return skew(h)

    def move(self, f: Tensor, h: Tensor) -> Tensor:
        return _from_log_factor(f + _lower(h))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        f = self.frame(double(x))
        return torch.func.jvp(_from_log_factor, (f,), (self.frame(double(y)) - f,))[1].to(x.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(self.frame(double(y)) - self.frame(double(x))).to(x.dtype)


class Factors(NamedTuple):
    """A correlation matrix, its Cholesky factor and that of I + C * C^-1."""

    c: Tensor
    lower: Tensor
    diagonal: Tensor


class _QuotientAffine(_Geometry):
    """Horizontal lifts to the positive definite matrices under their affine-invariant metric."""

    block = "symmetric"
    flat = False

    def frame(self, x: Tensor) -> Factors:
        lower = cholesky(x)
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        return Factors(x, lower, cholesky(eye + x * torch.cholesky_solve(eye.expand_as(x), lower)))

    def push(self, f: Factors, h: Tensor) -> Tensor:
        v = f.lower @ sym(h) @ f.lower.mT
        half = v.diagonal(dim1=-2, dim2=-1) / 2
        return v - half.unsqueeze(-1) * f.c - f.c * half.unsqueeze(-2)

    def pull(self, f: Factors, g: Tensor) -> Tensor:
        g = sym(g)
        return f.lower.mT @ (g - torch.diag_embed((g * f.c).sum(-1))) @ f.lower

    def coords(self, f: Factors, v: Tensor) -> Tensor:
        return self.conform(f, whiten(f.lower, v))

    def conform(self, f: Factors, h: Tensor) -> Tensor:
        """h without its vertical part L^-1 (D C + C D) L^-T."""
        h = sym(h)
        inner = torch.linalg.solve_triangular(f.lower.mT, h @ f.lower.mT, upper=True)  # C^-1 V
        d = torch.cholesky_solve(inner.diagonal(dim1=-2, dim2=-1).unsqueeze(-1), f.diagonal)
        return h - 2 * sym(torch.linalg.solve_triangular(f.lower, d * f.lower, upper=False))

    def move(self, f: Factors, h: Tensor) -> Tensor:
        root = f.lower @ sym_exp(self.conform(f, h) / 2)
        return _unit_diagonal(root @ root.mT)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        f, s = self._lift(x, y)
        return self.push(f, s).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(self._lift(x, y)[1]).to(x.dtype)

    def _lift(self, x: Tensor, y: Tensor) -> tuple[Factors, Tensor]:
        """The frame at x and the coordinates of the D y D whose logarithm is horizontal, in float64."""
        x, y = torch.broadcast_tensors(double(x), double(y))
        f = self.frame(x)

        def coordinates(z: Tensor) -> Tensor:
            d = z.exp()
            return sym_log(whiten(f.lower, d.unsqueeze(-1) * y * d.unsqueeze(-2)))

        def vertical(z: Tensor) -> Tensor:
            h = coordinates(z)
            inner = torch.linalg.solve_triangular(f.lower.mT, h @ f.lower.mT, upper=True)
            return inner.diagonal(dim1=-2, dim2=-1)

        def step(z: Tensor) -> Tensor:
            return -torch.cholesky_solve(vertical(z).unsqueeze(-1), f.diagonal).squeeze(-1)

        with torch.no_grad():
            z = fixed_point(step, torch.zeros_like(x[..., 0]), "log of correlation matrices")
        if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
            z = with_derivatives(vertical, z)
        return f, coordinates(z)


METRICS: dict[str, _Geometry] = {
    "log-euclidean-cholesky": _LogEuclideanCholesky(),
    "quotient-affine": _QuotientAffine(),
}


def _unit_diagonal(x: Tensor) -> Tensor:
    """cor(x) = D x D with ones on the diagonal, to the last bit."""
    d = x.diagonal(dim1=-2, dim2=-1).rsqrt()
    c = sym(d.unsqueeze(-1) * x * d.unsqueeze(-2))
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return c * (1 - eye) + eye


def _lower(h: Tensor) -> Tensor:
    return math.sqrt(2) * skew(h).tril(-1)


def _from_log_factor(n: Tensor) -> Tensor:
    """cor(T T^T) with the unit triangular T = expm(n)."""
    eye = torch.eye(n.shape[-1], dtype=n.dtype, device=n.device)
    # torch's more cautious scaling is right for a matrix as far from normal as this: with that of `linalg.expm` two
    # digits are lost at condition number 1e10. The identity makes up for torch's issue 196592, as there.
    t = torch.linalg.matrix_exp(n.tril(-1) + eye) / math.e
    return _unit_diagonal(t @ t.mT)


def _log_factor(x: Tensor) -> Tensor:
    """The strictly lower triangular N with `_from_log_factor(N) == x`: a finite sum, as its powers vanish."""
    lower = cholesky(x)
    power = n = (lower / lower.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)).tril(-1)
    total = n
    for k in range(2, x.shape[-1]):
        power = power @ n
        total = total - (-1) ** k / k * power
    return total
