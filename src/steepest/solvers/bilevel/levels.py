"""Two functions of two points, one above the other, and their derivatives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import as_tuple, each, like
from steepest.solvers.problem import Evaluations, Iterate, Problem

Function = Callable[[Any, Any], Tensor]
POWERS = 6
"""Steps of the power method for the norm of the cross derivative, of which an order of magnitude is wanted."""


class Levels:
    """f(x, y), to be minimised over x for the y that minimises g(x, y).

    Args:
        upper: f; takes x and y, as their manifolds pack them, and returns a real number as a tensor, made of torch
            operations.
        lower: g, likewise.
        manifold_x, manifold_y: where they live.
        seed: of all that is random.

    >>> from steepest import Euclidean
    >>> from steepest.solvers import CG, Levels
    >>> levels = Levels(lambda x, y: y @ y / 2, lambda x, y: (y - 3 * x).square().sum(), Euclidean(1), Euclidean(1))
    >>> here = levels.at(torch.ones(2), 3 * torch.ones(2))  # the lower minimum, where F(x) = 9 |x|^2 / 2
    >>> CG().estimate(here).covector.tolist()
    [9.0, 9.0]
    """

    def __init__(
        self, upper: Function, lower: Function, manifold_x: Manifold, manifold_y: Manifold, seed: int = 0
    ) -> None:
        self.upper, self.lower = _checked("upper", upper), _checked("lower", lower)
        self.manifold_x, self.manifold_y, self.seed = manifold_x, manifold_y, seed
        self.above, self.below = Evaluations(), Evaluations()
        """What has been computed of f and of g; derivatives across count as products with the Hessian."""

    def at(self, x: Any, y: Any) -> Pair:
        """Both functions at two points; nothing is computed before it is asked for."""
        return Pair(self, x, y)

    def problem(self, x: Any) -> Problem:
        """g(x, .) on its manifold."""
        problem = Problem(lambda y: self.lower(x, y), self.manifold_y, seed=self.seed)
        problem.evaluations = self.below
        return problem

    def value(self, x: Any, y: Any) -> float:
        """f, infinite where it is NaN."""
        self.above.values += 1
        with torch.no_grad():
            return float(self.upper(x, y).nan_to_num(torch.inf, torch.inf, -torch.inf))


class Pair:
    """x and y with what is known of both functions there. All vectors are coordinates in the frames at x and at y."""

    def __init__(self, levels: Levels, x: Any, y: Any) -> None:
        self.levels, self.x, self.y = levels, x, y
        self._x = each(lambda t: t.detach().requires_grad_(), x)
        problem = levels.problem(self._x)
        problem.curvature = True
        self.below: Iterate = problem.at(y)
        """g(x, .) at y: its gradient and Hessian are those of the lower level."""

    @functools.cached_property
    def _frame_x(self) -> Any:
        with torch.no_grad():
            return self.levels.manifold_x.frame(self.x)

    @functools.cached_property
    def _above(self) -> tuple[Any, Any]:
        """Euclidean gradient of f in x, and in y."""
        self.levels.above.gradients += 1
        leaves = [each(lambda t: t.detach().requires_grad_(), p) for p in (self.x, self.y)]
        with torch.enable_grad():
            loss = self.levels.upper(*leaves)
        flat = (*as_tuple(leaves[0]), *as_tuple(leaves[1]))
        if not loss.requires_grad:
            return each(torch.zeros_like, self.x), each(torch.zeros_like, self.y)
        grads = torch.autograd.grad(loss, flat, materialize_grads=True)
        k = len(as_tuple(self.x))
        return like(self.x, grads[:k]), like(self.y, grads[k:])

    @property
    def direct(self) -> Any:
        """Euclidean gradient of f in x alone, packed like x."""
        return self._above[0]

    @functools.cached_property
    def pressure(self) -> Tensor:
        """Riemannian gradient of f in y, `(n,)`."""
        with torch.no_grad():
            return self.below.ravel(self.levels.manifold_y._pull(self.below.frame, self._above[1]))

    def curved(self, v: Tensor) -> Tensor:
        """Hess_y g v, with the identity on coordinates that no gradient can be: rounding puts something there, which an
        iteration would otherwise blow up."""
        return self.below.product(v) + v - self.below.conform(v)

    def cross(self, v: Tensor) -> Any:
        """Euclidean gradient in x of <grad_y g, v>, for v `(n,)` at y, packed like x."""
        self.levels.below.products += 1
        with torch.no_grad():
            w = as_tuple(self.below.push(v))
        pairs = [(g, t) for g, t in zip(as_tuple(self.below.covector), w, strict=True) if g.requires_grad]
        if not pairs:
            return each(torch.zeros_like, self.x)
        outputs, vectors = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, as_tuple(self._x), vectors, retain_graph=True, materialize_grads=True)
        return like(self.x, found)

    def pulled(self, covector: Any) -> Any:
        """Euclidean gradient in x -> coordinates, as the manifold has them."""
        with torch.no_grad():
            return self.levels.manifold_x._pull(self._frame_x, covector)

    def length(self, covector: Any) -> float:
        """Riemannian norm of the gradient with this Euclidean gradient in x."""
        h = as_tuple(self.pulled(covector))
        return float(torch.stack([torch.linalg.vector_norm(b) for b in h]).norm())

    @functools.cached_property
    def cross_norm(self) -> float:
        """Largest singular value of the cross derivative of g, by the power method, from below."""
        v = self.below.random(self.below.problem.generator(0))
        largest = 0.0
        for _ in range(POWERS):
            v = v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)
            c = self.cross(v)
            largest = max(largest, self.length(c))
            v = self._adjoint(self.pulled(c))
        return largest

    def _adjoint(self, h: Any) -> Tensor:
        """Gradient in y of <grad_x g, push(h)>, `(n,)`: the cross derivative's adjoint."""
        manifold = self.levels.manifold_x
        self.levels.below.products += 1
        y = each(lambda t: t.detach().requires_grad_(), self.y)
        with torch.enable_grad():
            loss = self.levels.lower(self._x, y)
            grads = torch.autograd.grad(loss, as_tuple(self._x), create_graph=True, materialize_grads=True)
        with torch.no_grad():
            w = as_tuple(manifold._push(self._frame_x, h))
        pairs = [(g, t) for g, t in zip(grads, w, strict=True) if g.requires_grad]
        if not pairs:
            return torch.zeros_like(self.below.gradient)
        outputs, vectors = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, as_tuple(y), vectors, materialize_grads=True)
        with torch.no_grad():
            return self.below.ravel(self.levels.manifold_y._pull(self.below.frame, like(self.y, found)))


def _checked(name: str, function: Function) -> Function:
    def call(x: Any, y: Any) -> Tensor:
        found = function(x, y)
        if not isinstance(found, Tensor) or found.numel() != 1 or found.is_complex():
            got = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"{name}: got {got}, expected a tensor with one real number. Sum over a batch.")
        return found.reshape(())

    return call
