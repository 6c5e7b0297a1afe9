"""What an estimate of the hypergradient is, and how wrong it may be."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.linalg.cg import conjugate_gradient
from steepest.manifolds.tensors import each
from steepest.solvers.bilevel.levels import Pair
from steepest.spec import Spec

NEWTON = 50
"""Most conjugate gradient steps to where the lower minimum is estimated to be."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The gradient of F(x) = f(x, y(x)), as an estimator has it.

    >>> from steepest import Euclidean
    >>> from steepest.solvers import Inverse, Levels
    >>> levels = Levels(lambda x, y: y @ y / 2, lambda x, y: (y - 3 * x).square().sum(), Euclidean(1), Euclidean(1))
    >>> estimate = Inverse().estimate(levels.at(torch.ones(2), 3 * torch.ones(2)))
    >>> estimate.covector.tolist(), estimate.residual, estimate.curvature
    ([9.0, 9.0], 0.0, 2.0)
    """

    covector: Any
    """Euclidean gradient in x, packed like x."""
    y: Any
    """The point of the lower level that it is of."""
    adjoint: Tensor | None
    """v, for which Hess_y g v = grad_y f, `(n,)`; None where it is not formed."""
    residual: float
    """\\|grad_y f - Hess_y g v\\|, or what corresponds to it."""
    curvature: float
    """The smallest eigenvalue of Hess_y g, as far as the estimator has seen it: often from above."""


class Hypergradient(Spec, abc.ABC):
    """A way to estimate the gradient of F(x) = f(x, y(x)), where y(x) minimises g(x, .):

        grad F = grad_x f - D_x grad_y g [v],    Hess_y g v = grad_y f,

    all on the manifolds, at a y near y(x) (Han, Mishra, Jawanpuria and Takeda 2024, proposition 1). Estimators differ
    in how they find v. To write one, give `estimate`.
    """

    unrolls: ClassVar[bool] = False
    """Whether it takes the steps of the lower level itself, from the point that it is given."""

    @abc.abstractmethod
    def estimate(self, pair: Pair) -> Estimate:
        """The gradient at x from the y at hand, or from the one that its own steps lead to from there."""

    def error(self, pair: Pair, estimate: Estimate) -> float:
        """About how far the estimate is from the gradient of F, in the Riemannian norm.

        It has the two parts that the bounds of Han et al. 2024 (lemma 1) have, with what is measured here in place of
        their constants. The system's: C \\|r\\| / mu, for the residual r, the smallest curvature mu seen and the norm C
        of the cross derivative. The lower level's: the change of the estimate when y moves by Newton's step towards
        y(x). Both are of first order; it is no bound where mu was not seen, or y is far off.
        """
        system = 0.0
        if estimate.residual > 0:
            system = pair.cross_norm * estimate.residual / estimate.curvature if estimate.curvature > 0 else math.inf
        here = pair.levels.at(pair.x, estimate.y)
        step, _ = conjugate_gradient(here.curved, here.below.conform(here.below.gradient), 1, 1e-3, NEWTON)
        there = self.estimate(pair.levels.at(pair.x, here.below.move(-step).x))
        return system + pair.length(each(torch.sub, there.covector, estimate.covector))

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[Hypergradient]:
        """Instances: what the tests run."""


def implicit(pair: Pair, v: Tensor, curvature: float) -> Estimate:
    """The estimate that belongs to v, with one more product for its residual."""
    residual = float((pair.pressure - pair.below.product(v)).norm())
    return Estimate(implicit_covector(pair, v), pair.y, v, residual, curvature)


def implicit_covector(pair: Pair, v: Tensor) -> Any:
    """Euclidean gradient in x of f less that of <grad_y g, v>."""
    return each(torch.sub, pair.direct, pair.cross(v))
