"""What a manifold is: at each point, an orthonormal frame for its tangent space.

Shapes are written `(*b, m, n)`: any leading batch dimensions, then one matrix. A point `x` and a tangent vector `v` are
a tensor, or a tuple of tensors where the manifold couples several (`arity > 1`). Coordinates `h` are a tensor, or a
tuple of tensors where the frame has several blocks.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg.precision import widen
from steepest.spec import Spec

Tensors = Tensor | tuple[Tensor, ...]
"""One tensor, or a tuple of them."""


def as_tuple(x: Tensors) -> tuple[Tensor, ...]:
    """The tensors of a point, a tangent vector or coordinates, always as a tuple."""
    return x if isinstance(x, tuple) else (x,)


def like(x: Tensors, parts: Sequence[Tensor]) -> Tensors:
    """`parts` packed as `x` is: a bare tensor for a bare tensor."""
    return tuple(parts) if isinstance(x, tuple) else parts[0]


def total(x: Tensor, ndim: int) -> Tensor:
    """Sum over the last `ndim` dimensions; torch's own sum over none of them would sum over all."""
    return x.sum(tuple(range(-ndim, 0))) if ndim else x


class Manifold(Spec, abc.ABC):
    """A matrix manifold; a frozen dataclass whose fields are its metric, its retraction and its sizes.

    At a point x the *frame* is a linear map `push(x, h)` from plain matrices h, the coordinates, onto the tangent
    space; it is a co-isometry: isometric on the orthogonal complement of its kernel. Its adjoint `pull(x, g)` turns a
    Euclidean gradient g into coordinates. In coordinates the metric is the Frobenius one, so an optimiser written for
    plain matrices works there unchanged: `retract(x, push(x, -lr * chain(pull(x, g))))`.

    To write a manifold, give the methods that are abstract below. Those with a leading underscore take, in place of
    the point, what `frame(x)` computed of it once (a Cholesky factor, say; by default the point itself), so that one
    optimiser step factors each point once. `exp`, `log`, `dist` and `transport` exist only where a closed form is
    known: ask with `hasattr`. `steepest.testing.check_manifold` checks all of it.
    """

    arity: ClassVar[int] = 1
    """Number of tensors that make up a point."""
    ndim: ClassVar[int] = 2
    """Number of trailing dimensions of one point; all before are batch dimensions."""
    identity_carry: ClassVar[bool] = False
    """Whether `carry` returns conforming coordinates as they are, so that an optimiser may leave the call out."""

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

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """Instances with shapes of their points, edge cases among them: what the common suite runs on."""

    def represent(self, x: Any) -> Any:
        """The matrix that the point stands for, the same for all its representatives: x itself, B A for a pair of
        factors,
        the projector X X^T for a basis of a subspace."""
        return x

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

    def retract(self, x: Any, v: Any) -> Any:
        """A point y = x + v + O(|v|^2) of the manifold, for v tangent at x."""
        f = self.frame(x)
        return self._move(f, self._coords(f, v))

    def decay(self, x: Any, h: Any, rate: float) -> Any:
        """Weight decay: h plus `rate` times the coordinates of the tangent part of x itself, the direction in which the
        matrix grows as a whole; a step against them shrinks it by the factor 1 - lr * rate. h where x cannot shrink."""
        return self._decay(self.frame(x), h, rate)

    def grad(self, x: Any, g: Any) -> Any:
        """Riemannian gradient: the tangent vector of steepest ascent for the Euclidean gradient g."""
        f = self.frame(x)
        return self._push(f, self._pull(f, g))

    def inner(self, x: Any, u: Any, v: Any) -> Tensor:
        """Riemannian inner product of tangent vectors at x, shape `(*b,)`."""
        f = self.frame(x)
        pairs = zip(as_tuple(self._coords(f, u)), as_tuple(self._coords(f, v)), self.block_ndims, strict=True)
        return sum(total(a * b, k) for a, b, k in pairs)  # type: ignore[return-value]

    def norm(self, x: Any, v: Any) -> Tensor:
        """Riemannian norm of a tangent vector at x, shape `(*b,)`."""
        return self.inner(x, v, v).sqrt()

    def check_point(self, x: Any, name: str = "x", dtype: torch.dtype | None = None) -> None:
        """Raise a ValueError that names the fault unless x is a point of this manifold, to the root of the precision of
        `dtype`, in which it has been stored (by default its own)."""
        tensors = as_tuple(x)
        if len(tensors) != self.arity:
            raise ValueError(f"{name}: a point of {self} is made of {self.arity} tensor(s), got {len(tensors)}")
        if fault := self.shape_error(x):
            raise ValueError(f"{name}: {fault}")
        worst = self.residual(like(x, [widen(t.detach()) for t in tensors])).max().item()
        dtype = dtype or tensors[0].dtype
        tolerance = 4 * torch.finfo(dtype).eps ** 0.5
        if not worst <= tolerance:
            raise ValueError(
                f"{name} is not a point of {self}: its residual is {worst:.2g}, expected at most {tolerance:.2g} in "
                f"{dtype}. Move it there first with `x = manifold.project(x)`, or start from "
                "`manifold.random_point(...)`."
            )
