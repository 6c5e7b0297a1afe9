"""Sums of squares, and the linear model of what is squared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.tensors import as_tuple, each, like


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    """Half the squared norm of a residual, as a function to be minimised: what `GaussNewton` needs.

    Args:
        residual: takes a point, as the manifold packs it, and returns a tensor of any shape, or a tuple of them; made
            of torch operations that can be differentiated twice.

    Rotations and scale that take one cloud of points to another, as Levenberg and Marquardt would find them:

    >>> from steepest import Euclidean, Product, Stiefel, minimize
    >>> from steepest.solvers import GaussNewton, LeastSquares, TrustRegion
    >>> cloud = torch.randn(20, 3)
    >>> turned = 2 * cloud @ Stiefel().random_point((3, 3))
    >>> fun = LeastSquares(lambda x: x[1] * cloud @ x[0] - turned)
    >>> x0 = (Stiefel().project(cloud.mT @ turned), torch.ones(()))
    >>> result = minimize(fun, x0, Product((Stiefel(), Euclidean(0))), TrustRegion(GaussNewton()), tolerance=1e-3)
    >>> round(result.x[1].item(), 4), result.success
    (2.0, True)
    """

    residual: Callable[[Any], Any]

    def __call__(self, x: Any) -> Tensor:
        """|residual(x)|^2 / 2."""
        # not of abs(r), whose derivative at zero is taken for zero: it would lack those residuals' second derivatives
        return torch.stack([(r.conj() * r).real.sum() for r in as_tuple(self.residual(x))]).sum() / 2

    def linearised(self, x: Any) -> Linearisation:
        """The derivative J of the residual at x."""
        return Linearisation(self.residual, x)


class Linearisation:
    """The derivative J of a function at a point, and its adjoint; the function is called once.

    J itself is the derivative of the adjoint, which is linear in its argument: two passes backward, where each product
    by forward differentiation would evaluate the function again.

    >>> from steepest.solvers import LeastSquares
    >>> linear = LeastSquares(lambda x: x**2).linearised(torch.tensor([1.0, 2.0]))
    >>> linear.forth(torch.ones(2)).tolist(), linear.gram(torch.ones(2)).tolist()
    ([2.0, 4.0], [4.0, 16.0])
    """

    def __init__(self, function: Callable[[Any], Any], x: Any) -> None:
        with torch.enable_grad():
            self.leaf = each(lambda t: t.detach().requires_grad_(), x)
            out = as_tuple(function(self.leaf))
            self.outputs = [t for t in out if t.requires_grad]
            self.probes = [torch.zeros_like(t, requires_grad=True) for t in self.outputs]
            self.adjoint = self._back(self.probes, create_graph=True) if self.outputs else []

    def forth(self, v: Any) -> Any:
        """J v, as the function packs its result; parts of it that do not depend on x are left out."""
        pairs = [(a, u) for a, u in zip(self.adjoint, as_tuple(v), strict=True) if a.requires_grad]
        adjoint, vectors = zip(*pairs, strict=True)
        found = torch.autograd.grad(adjoint, self.probes, vectors, retain_graph=True, materialize_grads=True)
        return found if len(found) > 1 else found[0]

    def back(self, w: Any) -> Any:
        """J^T w, packed like x."""
        return like(self.leaf, self._back(as_tuple(w)))

    def gram(self, v: Any) -> Any:
        """J^T J v."""
        return self.back(self.forth(v)) if self.outputs else each(torch.zeros_like, v)

    def _back(self, w: Any, create_graph: bool = False) -> Any:
        return torch.autograd.grad(
            self.outputs,
            as_tuple(self.leaf),
            w,
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )
