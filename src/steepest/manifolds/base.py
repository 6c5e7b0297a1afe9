"""What a manifold is: at each point, an orthonormal frame for its tangent space.

Shapes are written `(*b, m, n)`: any leading batch dimensions, then one matrix. A point `x` and a tangent vector `v` are
a tensor, or a tuple of tensors where the manifold couples several (`arity > 1`). Coordinates `h` are a tensor, or a
tuple of tensors where the frame has several blocks.
"""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg.precision import widen
from steepest.manifolds import geodesic, karcher
from steepest.manifolds.tensors import as_tuple, like, total
from steepest.spec import Spec

OPERATIONS = ("exp", "log", "dist", "transport", "hessian", "mean")
"""What every manifold can do besides optimisation: by a formula of its own, or by the general method of this class."""


class Manifold(Spec, abc.ABC):
    """A matrix manifold; a frozen dataclass whose fields are its metric, its retraction and its sizes.

    At a point x the *frame* is a linear map `push(x, h)` from plain matrices h, the coordinates, onto the tangent
    space; it is a co-isometry: isometric on the orthogonal complement of its kernel. Its adjoint `pull(x, g)` turns a
    Euclidean gradient g into coordinates. In coordinates the metric is the Frobenius one, so an optimiser written for
    plain matrices works there unchanged: `retract(x, push(x, -lr * chain(pull(x, g))))`.

    To write a manifold, give the methods that are abstract below. Those with a leading underscore take, in place of
    the point, what `frame(x)` computed of it once (a Cholesky factor, say; by default the point itself), so that one
    optimiser step factors each point once. `steepest.testing.check_manifold` checks all of it.

    `exp`, `log`, `dist`, `transport`, `hessian` and `mean` work everywhere: the frame determines the metric, and so the
    geodesics, which the general methods here integrate and shoot along. A manifold that knows a formula gives it in
    their place; `closed` tells for which.

    Points may be complex where `scalars` says so. The inner product is then Re tr(A^H B), for which torch's gradient of
    a real function is the gradient.
    """

    arity: ClassVar[int] = 1
    """Number of tensors that make up a point."""
    ndim: ClassVar[int] = 2
    """Number of trailing dimensions of the tensors of a point, where all have as many."""
    identity_carry: ClassVar[bool] = False
    """Whether `carry` returns conforming coordinates as they are, so that an optimiser may leave the call out."""
    scalars: ClassVar[tuple[str, ...]] = ("real",)
    """What entries may be: "real", "complex" or both."""
    parallel: ClassVar[bool] = False
    """Whether `transport` is the parallel one, along the shortest geodesic."""

    @property
    def point_ndims(self) -> tuple[int, ...]:
        """Number of trailing dimensions of each tensor of a point; all before are batch dimensions."""
        return (self.ndim,) * self.arity

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks of the coordinates; each is closed under odd spectral functions."""
        return ("h",)

    @property
    def block_ndims(self) -> tuple[int, ...]:
        """Number of trailing dimensions of each block."""
        return (self.ndim,) * len(self.blocks)

    @property
    def owners(self) -> tuple[int, ...]:
        """For each block, the tensor of the point beside which an optimiser keeps that block's state."""
        return tuple(range(self.arity)) if len(self.blocks) == self.arity else (0,) * len(self.blocks)

    # What every manifold gives. ---------------------------------------------------------------------------------------

    def frame(self, x: Any) -> Any:
        """What the methods below need of the point, computed once."""
        return x

    @abc.abstractmethod
    def _push(self, f: Any, h: Any) -> Any:
        """Coordinates -> tangent vector, at the frame f."""

    @abc.abstractmethod
    def _pull(self, f: Any, g: Any) -> Any:
        """Euclidean gradient -> coordinates, at the frame f: the adjoint of `_push`."""

    @abc.abstractmethod
    def _coords(self, f: Any, v: Any) -> Any:
        """Tangent vector -> coordinates, at the frame f: the right inverse of `_push`, in the range of `_pull`."""

    def _conform(self, f: Any, h: Any) -> Any:
        """Orthogonal projection of coordinates onto the range of `_pull`; the identity where the frame has no
        kernel."""
        return h

    def _carry(self, f: Any, to: Any, h: Any) -> Any:
        """First-order state (momentum) from the frame f to the frame `to` after the point has moved."""
        return self._conform(to, h)

    def _leave(self, f: Any) -> Any:
        """What `_carry` takes in place of the frame f once the point has moved on, in tensors of its own: None where,
        as by default, it needs nothing of it."""
        return None

    def _horizontal(self, f: Any, h: Any) -> Any:
        """Coordinates without the part that does not change what the point stands for; h itself but where the frame is
        one of the total space of a quotient."""
        return h

    @abc.abstractmethod
    def _move(self, f: Any, h: Any) -> Any:
        """`retract(x, push(x, h))` at the frame f: the step of every optimiser."""

    def _decay(self, f: Any, h: Any, rate: float) -> Any:
        """Ascent coordinates h plus `rate` times those in which the matrix grows as a whole; h where its scale is
        fixed."""
        return h

    @abc.abstractmethod
    def project(self, x: Any) -> Any:
        """A nearest point of the manifold in the Frobenius norm; repairs drift."""

    @abc.abstractmethod
    def residual(self, x: Any) -> Tensor:
        """How far x is from the manifold, without unit, one number per batch element, shape `(*b,)`."""

    @abc.abstractmethod
    def random_point(
        self,
        shape: Any,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """A random point of the given shape (a tuple of shapes where `arity > 1`)."""

    @abc.abstractmethod
    def shape_error(self, x: Any) -> str:
        """What is wrong with the shape of x, and what was expected; the empty string when nothing is."""

    @abc.abstractmethod
    def dim(self, shape: Any, scalars: str = "real") -> int:
        """Dimension over the real numbers of the manifold of points of the given shape, whose entries are `scalars`."""

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Instances with shapes of their points, edge cases among them: what the common suite runs on."""

    def represent(self, x: Any) -> Any:
        """The matrix that the point stands for, the same for all its representatives: x itself, B A for a pair of
        factors, the projector X X^H for a basis of a subspace."""
        return x

    @property
    def closed(self) -> frozenset[str]:
        """Those of `OPERATIONS` for which this manifold has a formula or an algorithm of its own."""
        return frozenset(name for name in OPERATIONS if getattr(type(self), name) is not getattr(Manifold, name))

    # What every manifold inherits. ------------------------------------------------------------------------------------

    def push(self, x: Any, h: Any) -> Any:
        """Coordinates h -> tangent vector at x."""
        return self._push(self.frame(x), h)

    def pull(self, x: Any, g: Any) -> Any:
        """Euclidean gradient g at x -> coordinates; the adjoint of `push`, and the norm of the result is the norm of
        the Riemannian gradient."""
        return self._pull(self.frame(x), g)

    def coords(self, x: Any, v: Any) -> Any:
        """Tangent vector v at x -> coordinates; `push(x, coords(x, v)) == v`."""
        return self._coords(self.frame(x), v)

    def conform(self, x: Any, h: Any) -> Any:
        """Orthogonal projection of coordinates onto those that `pull` can return at x."""
        return self._conform(self.frame(x), h)

    def carry(self, x: Any, y: Any, h: Any) -> Any:
        """Coordinates of first-order state at x -> coordinates at y."""
        return self._carry(self.frame(x), self.frame(y), h)

    def decay(self, x: Any, h: Any, rate: float) -> Any:
        """Weight decay: h plus `rate` times the coordinates of the tangent part of x itself, the direction in which the
        matrix grows as a whole; a step against them shrinks it by the factor 1 - lr * rate. h where x cannot shrink."""
        return self._decay(self.frame(x), h, rate)

    def inner(self, x: Any, u: Any, v: Any) -> Tensor:
        """Riemannian inner product of tangent vectors at x, shape `(*b,)`."""
        f = self.frame(x)
        return self._dot(self._coords(f, u), self._coords(f, v))

    def _dot(self, h: Any, k: Any) -> Tensor:
        """Frobenius inner product of coordinates, shape `(*b,)`."""
        pairs = zip(as_tuple(h), as_tuple(k), self.block_ndims, strict=True)
        return sum(total((a.conj() * b).real, n) for a, b, n in pairs)  # type: ignore[return-value]

    def norm(self, x: Any, v: Any) -> Tensor:
        """Riemannian norm of a tangent vector at x, shape `(*b,)`; its derivative at v = 0 is taken as zero."""
        parts = zip(as_tuple(self._coords(self.frame(x), v)), self.block_ndims, strict=True)
        lengths = [torch.linalg.vector_norm(a, dim=tuple(range(-n, 0))) if n else a.abs() for a, n in parts]
        return lengths[0] if len(lengths) == 1 else torch.linalg.vector_norm(torch.stack(lengths), dim=0)

    def random_tangent(self, x: Any, *, generator: torch.Generator | None = None) -> Any:
        """Standard Gaussian on the tangent space at x, in the Riemannian metric."""
        f = self.frame(x)
        h = as_tuple(self._pull(f, x))
        noise = [torch.randn(b.shape, generator=generator, dtype=b.dtype, device=b.device) for b in h]
        # torch's complex Gaussian has variance one for the two real dimensions of an entry together
        noise = [b * math.sqrt(2) if b.is_complex() else b for b in noise]
        return self._push(f, tuple(noise) if len(self.blocks) > 1 else noise[0])

    # What every manifold can do, and some do by a formula of their own. -----------------------------------------------

    def retract(self, x: Any, v: Any) -> Any:
        """A point y = x + v + O(|v|^2) of the manifold, for v tangent at x."""
        f = self.frame(x)
        return self._move(f, self._coords(f, v))

    def grad(self, x: Any, g: Any) -> Any:
        """Riemannian gradient: the tangent vector of steepest ascent for the Euclidean gradient g."""
        f = self.frame(x)
        return self._push(f, self._pull(f, g))

    def exp(self, x: Any, v: Any) -> Any:
        """End of the geodesic that leaves x with velocity v, by integration (`geodesic.integrate`)."""
        return geodesic.integrate(self, x, v)

    def log(self, x: Any, y: Any) -> Any:
        """A v with `exp(x, v) == y`, as short as Newton's method finds from v = 0 (`geodesic.shoot`). NaN, with a
        warning, where it finds none."""
        return geodesic.shoot(self, x, y)

    def dist(self, x: Any, y: Any) -> Tensor:
        """Length of `log(x, y)`, shape `(*b,)`."""
        return self.norm(x, self.log(x, y))

    def transport(self, x: Any, y: Any, v: Any) -> Any:
        """v, tangent at x, as a tangent vector at y: through the coordinates, as momentum is carried. Not the parallel
        transport, and where `carry` projects, not an isometry."""
        f, to = self.frame(x), self.frame(y)
        return self._push(to, self._carry(f, to, self._coords(f, v)))

    def hessian(self, x: Any, g: Any, gv: Any, v: Any) -> Any:
        """Riemannian Hessian times the tangent vector v, from the Euclidean gradient g at x and the Euclidean Hessian
        times v, `gv` (`geodesic.hessian`: from the frame alone)."""
        return geodesic.hessian(self, x, g, gv, v)

    def mean(self, points: Any, weights: Tensor | None = None) -> Any:
        """Karcher mean of points stacked along a new first dimension, `(k, *b, ...)`: the minimiser, near the first of
        them, of the weighted sum of squared distances (`karcher.mean`).

        Differentiable twice, in the points and the weights. NaN, with a warning, where the iteration does not converge:
        points too far apart may have no mean, or several.

        Args:
            points: a tensor, or a tuple of tensors where `arity > 1`.
            weights: positive, `(k,)` or `(k, *b)`; scaled to sum one. None: equal.
        """
        return karcher.mean(self, points, weights)

    # Checks. ----------------------------------------------------------------------------------------------------------

    def check_point(self, x: Any, name: str = "x", dtype: torch.dtype | None = None) -> None:
        """Raise a ValueError that names the fault unless x is a point of this manifold, to the root of the precision of
        `dtype`, in which it has been stored (by default its own)."""
        tensors = as_tuple(x)
        if len(tensors) != self.arity:
            raise ValueError(f"{name}: a point of {self} is made of {self.arity} tensor(s), got {len(tensors)}")
        if fault := self.shape_error(x):
            raise ValueError(f"{name}: {fault}")
        kind = "complex" if any(t.is_complex() for t in tensors) else "real"
        if kind not in self.scalars:
            raise ValueError(f"{name}: entries are {kind} ({tensors[0].dtype}), expected {' or '.join(self.scalars)}")
        worst = self.residual(like(x, [widen(t.detach()) for t in tensors])).max().item()
        dtype = dtype or tensors[0].dtype
        tolerance = 4 * torch.finfo(dtype).eps ** 0.5
        if not worst <= tolerance:
            raise ValueError(
                f"{name} is not a point of {self}: its residual is {worst:.2g}, expected at most {tolerance:.2g} in "
                f"{dtype}. Move it there first with `x = manifold.project(x)`, or start from "
                "`manifold.random_point(...)`."
            )
