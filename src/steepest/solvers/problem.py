"""A function on a manifold as a solver sees it: at each point, a function of a flat vector of coordinates."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.linalg.precision import widen
from steepest.manifolds.base import Manifold
from steepest.manifolds.implicit import ravel, unravel
from steepest.manifolds.tensors import as_tuple, each, like

Function = Callable[[Any], Tensor]


@dataclasses.dataclass
class Evaluations:
    """How often something has been computed.

    >>> from steepest.solvers import Evaluations
    >>> Evaluations(values=3, gradients=2).total
    5
    """

    values: int = 0
    """Of the function."""
    gradients: int = 0
    products: int = 0
    """Of the Hessian with a vector."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.values + self.gradients + self.products

    def __str__(self) -> str:
        return f"{self.values} values, {self.gradients} gradients, {self.products} products with the Hessian"


class Problem:
    """A real function f on a manifold, with its derivatives in coordinates, and a count of what has been computed.

    The coordinates of all blocks and of all batch elements are one real vector `(n,)`, in which the metric is the
    ordinary inner product: solvers are written for such vectors. Leading batch dimensions of a point are a product of
    manifolds, on which f is one function.

    Args:
        fun: takes a point, as the manifold packs it (a tensor, or a tuple of tensors), and returns a real number as a
            tensor; made of torch operations unless the derivatives are given.
        manifold: where the points live.
        gradient: takes a point, and returns the Euclidean gradient, packed like the point. None: by autograd.
        hvp: takes a point and a tangent vector, and returns the Euclidean Hessian times it. None: by autograd of the
            gradient.
        seed: of all that is random.

    >>> from steepest import Sphere
    >>> from steepest.solvers import Problem
    >>> a = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    >>> here = Problem(lambda x: x @ a @ x / 2, Sphere()).at(torch.tensor([0.0, 0.6, 0.8]))
    >>> round(here.value, 2), here.gradient.numpy().round(3), round(here.norm, 2)
    (1.32, array([ 0.   , -0.384,  0.288], dtype=float32), 0.48)
    """

    def __init__(
        self,
        fun: Function,
        manifold: Manifold,
        gradient: Callable[[Any], Any] | None = None,
        hvp: Callable[[Any, Any], Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.fun, self.manifold, self.given_gradient, self.given_hvp = fun, manifold, gradient, hvp
        self.seed = seed
        self.evaluations = Evaluations()
        self.curvature = False
        """Whether gradients keep what products with the Hessian need."""
        self.derivatives = True
        """Whether values keep what gradients need; without, the function is called on plain tensors, and may be made of
        anything."""
        self.tolerance = 0.0
        """Gradient norm at which the run ends: no inner iteration needs to be more exact."""
        self._mapped: bool | None = None
        self.looped = False
        """Whether products with several vectors are taken one by one."""
        self._shapes: dict[Any, tuple[Tensor, ...]] = {}

    def at(self, x: Any) -> Iterate:
        """The function at a point; nothing is computed before it is asked for."""
        return Iterate(self, each(lambda t: widen(t.detach()), x))

    def value(self, x: Any) -> float:
        """f(x) as a number, without anything kept for derivatives; infinite where it is NaN."""
        self.evaluations.values += 1
        with torch.no_grad():
            return _number(self.fun(x))

    def values(self, xs: Any) -> list[float]:
        """f at k points stacked on a new first dimension, as `value` has it: by `torch.vmap` in one call, or one by one
        where the function is not made for that, which the first call finds out."""
        points = as_tuple(xs)
        k = len(points[0])
        if self._mapped is not False:
            try:
                with torch.no_grad():
                    found = torch.vmap(self.fun)(xs)
                numbers = [_number(f) for f in found.detach().cpu()]
                self._mapped = True
                self.evaluations.values += k
                return numbers
            except Exception:
                if self._mapped:
                    raise
                self._mapped = False
        return [self.value(like(xs, [t[i] for t in points])) for i in range(k)]

    def generator(self, *numbers: int, device: torch.device | None = None) -> torch.Generator:
        """A generator of random numbers that depends on the seed and these numbers alone (the iteration, say), so that
        a run that is resumed draws what the unbroken one would."""
        # far from the small seeds that x0 may have been drawn with: the same numbers again would be parallel to it
        start = (self.seed + 1) * 6364136223846793005 % 2**63
        mixed = functools.reduce(lambda a, b: (a * 1000003 + b + 1) % 2**63, numbers, start)
        return torch.Generator(device or "cpu").manual_seed(mixed)


class Iterate:
    """A point with what is known of the function there; each piece is computed when it is first asked for.

    Made by `Problem.at` and `Iterate.move`. All vectors are coordinates in the frame at this point.
    """

    def __init__(self, problem: Problem, x: Any) -> None:
        self.problem, self.x = problem, x
        self.tracked = False
        """Whether torch can differentiate the value, once that is computed."""
        self._leaf: Any = None
        self._loss: Tensor | None = None

    # The function. ----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def value(self) -> float:
        """f; infinite where it is NaN."""
        problem = self.problem
        if problem.given_gradient is not None or not problem.derivatives:
            return problem.value(self.x)
        problem.evaluations.values += 1
        with torch.enable_grad():
            self._leaf = each(lambda t: t.detach().requires_grad_(), self.x)
            self._loss = problem.fun(self._leaf)
        value = _number(self._loss)
        self.tracked = self._loss.requires_grad
        return value

    @functools.cached_property
    def covector(self) -> Any:
        """Euclidean gradient, packed like the point; where products are wanted, with its graph."""
        problem = self.problem
        problem.evaluations.gradients += 1
        if problem.given_gradient is not None:
            keep = problem.curvature and problem.given_hvp is None
            with torch.set_grad_enabled(keep):
                self._leaf = each(lambda t: t.detach().requires_grad_(keep), self.x)
                return _packed("gradient", problem.given_gradient(self._leaf), self.x)
        if self._loss is None:
            problem.evaluations.values -= "value" in self.__dict__
            self.__dict__.pop("value", None)
            self.value  # noqa: B018 - records the graph
        assert self._loss is not None
        if not self.tracked:
            return each(torch.zeros_like, self.x)
        keep = problem.curvature and problem.given_hvp is None
        with torch.enable_grad():
            leaves = as_tuple(self._leaf)
            grads = torch.autograd.grad(self._loss, leaves, create_graph=keep, materialize_grads=True)
        self._loss = None
        if not keep:
            self._leaf = None
        return like(self.x, grads)

    @functools.cached_property
    def gradient(self) -> Tensor:
        """Riemannian gradient, `(n,)`."""
        with torch.no_grad():
            return self.ravel(self.problem.manifold._pull(self.frame, each(Tensor.detach, self.covector)))

    @functools.cached_property
    def norm(self) -> float:
        """Riemannian norm of the gradient."""
        return float(torch.linalg.vector_norm(self.gradient))

    @property
    def finite(self) -> bool:
        """Whether value and gradient are."""
        return math.isfinite(self.value) and math.isfinite(self.norm)

    # The frame. -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def frame(self) -> Any:
        """`manifold.frame(x)`."""
        with torch.no_grad():
            return self.problem.manifold.frame(self.x)

    @functools.cached_property
    def blocks(self) -> tuple[Tensor, ...]:
        """Tensors of the shapes of the coordinates' blocks."""
        shapes, key = self.problem._shapes, tuple((t.shape, t.dtype) for t in as_tuple(self.x))
        if key not in shapes:
            with torch.no_grad():
                h = as_tuple(self.problem.manifold._pull(self.frame, self.x))
            shapes[key] = tuple(torch.empty_like(b, device="meta") for b in h)
        return shapes[key]

    @property
    def size(self) -> int:
        """n, how many real numbers the coordinates are."""
        return sum(b.numel() * (2 if b.is_complex() else 1) for b in self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        """Of vectors: real, as precise as the point."""
        return functools.reduce(torch.promote_types, [b.dtype.to_real() for b in self.blocks])

    def ravel(self, h: Any) -> Tensor:
        """Coordinates as the manifold has them -> one real vector; extra leading dimensions stay."""
        parts = as_tuple(h)
        if len(parts) == 1 and not parts[0].is_complex() and parts[0].ndim == self.blocks[0].ndim:
            return parts[0].reshape(-1)
        return ravel(parts, tuple(b.ndim for b in self.blocks))

    def unravel(self, z: Tensor) -> Any:
        """Vectors `(*k, n)` -> coordinates as the manifold has them, `(*k, *b, ...)`."""
        if len(self.blocks) == 1 and not self.blocks[0].is_complex():
            return z.reshape((*z.shape[:-1], *self.blocks[0].shape))
        parts = unravel(z, self.blocks, tuple(b.ndim for b in self.blocks))
        return parts if len(parts) > 1 else parts[0]

    def push(self, z: Tensor) -> Any:
        """The tangent vector with these coordinates, packed like the point."""
        return self.problem.manifold._push(self.frame, self.unravel(z))

    def conform(self, z: Tensor) -> Tensor:
        """Orthogonal projection of vectors `(*k, n)` onto those that gradients can be: where the frame has a kernel, or
        is one of the total space of a quotient, they are a subspace."""
        manifold, f = self.problem.manifold, self.frame
        with torch.no_grad():
            return self.ravel(manifold._horizontal(f, manifold._conform(f, self.unravel(z))))

    def random(self, generator: torch.Generator, *k: int) -> Tensor:
        """Standard Gaussian tangent vectors, `(*k, n)`, drawn in float64 so that the draw does not depend on the
        dtype."""
        z = torch.randn(*k, self.size, dtype=torch.float64, generator=generator, device=generator.device)
        return self.conform(z.to(as_tuple(self.x)[0].device, self.dtype))

    # Moving. ----------------------------------------------------------------------------------------------------------

    def move(self, z: Tensor) -> Iterate:
        """The point to which the retraction takes the tangent vector z `(n,)`."""
        with torch.no_grad():
            return Iterate(self.problem, self.problem.manifold._move(self.frame, self.unravel(z)))

    def slope(self, z: Tensor, t: float, to: Iterate) -> float:
        """d/dt f(retract(t z)) at t, where `to` is `move(t z)`."""
        with torch.enable_grad():
            s = torch.tensor(t, dtype=z.dtype, device=z.device, requires_grad=True)
            end = as_tuple(self.problem.manifold._move(self.frame, self.unravel(s * z)))
            g = [t.detach() for t in as_tuple(to.covector)]
            (found,) = torch.autograd.grad(end, s, g)
        return float(found)

    def carry(self, z: Tensor, to: Iterate) -> Tensor:
        """Vectors `(*k, n)` here as vectors at another point, as the optimisers carry momentum."""
        manifold = self.problem.manifold
        if manifold.identity_carry:
            return z
        with torch.no_grad():
            return self.ravel(manifold._carry(self.frame, to.frame, self.unravel(z)))

    # Second derivatives. ----------------------------------------------------------------------------------------------

    def product(self, z: Tensor) -> Tensor:
        """Riemannian Hessian times vectors `(n,)` or `(k, n)`; k of them at once."""
        self.problem.evaluations.products += 1 if z.ndim == 1 else len(z)
        self.covector  # noqa: B018 - first, outside of vmap
        with torch.no_grad():
            if z.ndim == 1:
                v = self.push(z)
                return self.curved(v, self._euclidean(v, False))
            v = self.push(z)
            return torch.vmap(self.curved)(v, self._euclidean(v, True))

    def curved(self, v: Any, gv: Any) -> Tensor:
        """Riemannian Hessian times a tangent vector v, from the Euclidean Hessian times it."""
        manifold = self.problem.manifold
        w = manifold.hessian(self.x, each(Tensor.detach, self.covector), gv, v)
        return self.ravel(manifold._horizontal(self.frame, manifold._coords(self.frame, w)))

    def _euclidean(self, v: Any, batched: bool) -> Any:
        """Euclidean Hessian times tangent vectors."""
        if self.problem.given_hvp is not None:

            def given(v: Any) -> Any:
                return _packed("hvp", self.problem.given_hvp(self.x, v), self.x)  # type: ignore[misc]

            return torch.vmap(given)(v) if batched else given(v)
        grads = as_tuple(self.covector)
        if not any(g.requires_grad for g in grads):
            if not self.problem.curvature:
                raise RuntimeError("products with the Hessian: set `problem.curvature = True` before the gradient")
            return each(torch.zeros_like, v)
        pairs = [(g, u) for g, u in zip(grads, as_tuple(v), strict=True) if g.requires_grad]
        outputs, vectors = zip(*pairs, strict=True)

        def backward(vectors: Any, batched: bool) -> tuple[Tensor, ...]:
            return torch.autograd.grad(
                outputs,
                as_tuple(self._leaf),
                vectors,
                retain_graph=True,
                materialize_grads=True,
                is_grads_batched=batched,
            )

        if not batched:
            return like(self.x, backward(vectors, False))
        if not self.problem.looped:
            try:
                return like(self.x, backward(vectors, True))
            except RuntimeError:  # some operation of the function has no rule for batches
                self.problem.looped = True
        rows = [backward(one, False) for one in zip(*vectors, strict=True)]
        return like(self.x, [torch.stack(column) for column in zip(*rows, strict=True)])


def _packed(name: str, found: Any, x: Any) -> Any:
    """What a function of the caller's has returned, in the dtypes of the point that it must be packed like."""
    shapes = [t.shape if isinstance(t, Tensor) else type(t).__name__ for t in as_tuple(found)]
    if shapes != [t.shape for t in as_tuple(x)]:
        said = " and ".join(str(tuple(s)) if isinstance(s, torch.Size) else s for s in shapes)
        wanted = " and ".join(str(tuple(t.shape)) for t in as_tuple(x))
        raise TypeError(f"{name}: returned {said}, expected what x is made of: {wanted}")
    return like(x, [t.to(p) for t, p in zip(as_tuple(found), as_tuple(x), strict=True)])


def _number(loss: Any) -> float:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        got = f"{tuple(loss.shape)} {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(
            f"fun: got {got}, expected a tensor with one real number. Sum over a batch, and take `.real` of what is "
            "real but complex in type."
        )
    number = float(loss.detach())
    return math.inf if math.isnan(number) else number
