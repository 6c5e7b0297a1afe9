"""What stands for the Hessian in a second-order method: values."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.tensors import each
from steepest.solvers.least_squares import LeastSquares
from steepest.solvers.problem import Iterate
from steepest.solvers.truncated_cg import Operator
from steepest.spec import Spec


class HessianModel(Spec, abc.ABC):
    """A symmetric matrix for the quadratic model of a function, given by its products with vectors.

    >>> from steepest.solvers import FiniteDifference, TrustRegion
    >>> TrustRegion("FiniteDifference").hessian == FiniteDifference()
    True
    """

    curvature: ClassVar[bool] = False
    """Whether it asks for products with the Hessian, for which gradients keep their graphs."""

    @abc.abstractmethod
    def operator(self, at: Iterate) -> Operator:
        """At a point, the map of a vector `(n,)` to its product; each use is counted in the evaluations."""


@dataclasses.dataclass(frozen=True)
class Exact(HessianModel):
    """The Riemannian Hessian, by autograd (or by `hvp`, where that is given) and the manifold's formula.

    >>> from steepest.solvers import Exact, TrustRegion, minimize
    >>> minimize(lambda x: (x**4).sum() + x.sum(), torch.ones(2, 2), method=TrustRegion(Exact())).success
    True
    """

    curvature: ClassVar[bool] = True

    def operator(self, at: Iterate) -> Operator:
        """`Iterate.product`."""
        return at.product


@dataclasses.dataclass(frozen=True)
class FiniteDifference(HessianModel):
    """The Hessian with the derivative of the Euclidean gradient, along the retraction, by a difference: one gradient
    more for each product, and no second derivatives of the function.

    Differences of the Riemannian gradient, carried back, would err by a multiple of the gradient on manifolds where
    `carry` is not parallel to first order. The Euclidean gradient needs no carrying, and the manifold's own part of the
    Hessian is exact: the error is of the order of the step everywhere.

    Args:
        step: length of the tangent vector, relative to the point's own size in the metric where that is above one.
            None: the root of the precision, half of the digits.

    Boumal 2015, "Riemannian trust regions with finite-difference Hessian approximations are globally convergent", for
    any such difference.

    >>> from steepest import Sphere
    >>> from steepest.solvers import FiniteDifference, TrustRegion, minimize
    >>> a = torch.diag(torch.arange(5.0))
    >>> method = TrustRegion(FiniteDifference())
    >>> result = minimize(lambda x: x @ a @ x, torch.ones(5) / 5**0.5, Sphere(), method, tolerance=1e-3)
    >>> result.success, result.evaluations.products
    (True, 0)
    """

    step: float | None = None

    def __post_init__(self) -> None:
        if self.step is not None:
            check_range("step", self.step, open_low=True)

    def operator(self, at: Iterate) -> Operator:
        """A difference of gradients."""
        relative = self.step or math.sqrt(torch.finfo(at.dtype).eps)
        size = float(torch.linalg.vector_norm(at.ravel(at.problem.manifold._coords(at.frame, at.x))))
        return functools.partial(_difference, at, relative * max(size, 1.0))


def _difference(at: Iterate, step: float, z: Tensor) -> Tensor:
    length = float(torch.linalg.vector_norm(z))
    if not 0 < length < math.inf:
        return z * 0
    t = step / length
    to = at.move(t * z)
    with torch.no_grad():
        return at.curved(at.push(z), each(lambda a, b: (a - b) / t, to.covector, at.covector))


@dataclasses.dataclass(frozen=True)
class GaussNewton(HessianModel):
    """J^T J for the function half |residual(x)|^2, with the derivative J of the residual in coordinates: never
    negative, and close to the Hessian where residuals are small or nearly linear. With a trust region this is the
    Levenberg-Marquardt method.

    It asks for `fun=LeastSquares(residual)`.

    Absil, Mahony and Sepulchre 2008, section 8.4, on manifolds.

    >>> from steepest import Sphere
    >>> from steepest.solvers import GaussNewton, LeastSquares, TrustRegion, minimize
    >>> a = torch.eye(5)[:3] + 0.1
    >>> fun = LeastSquares(lambda x: a @ x - 0.5)
    >>> result = minimize(fun, torch.ones(5) / 5**0.5, Sphere(), TrustRegion(GaussNewton()), tolerance=1e-4)
    >>> result.success
    True
    """

    def operator(self, at: Iterate) -> Operator:
        """The residual's derivative and its adjoint."""
        fun = at.problem.fun
        if not isinstance(fun, LeastSquares):
            raise TypeError(
                f"fun: got {type(fun).__name__}, but hessian=GaussNewton() needs the residual: pass "
                "fun=LeastSquares(residual), of which half the sum of squares is minimised, or take hessian=Exact()"
            )
        linear = fun.linearised(at.x)

        def product(z: Tensor) -> Tensor:
            at.problem.evaluations.products += 1
            with torch.no_grad():
                h = at.problem.manifold._pull(at.frame, linear.gram(at.push(z)))
                return at.ravel(at.problem.manifold._horizontal(at.frame, h))

        return product
