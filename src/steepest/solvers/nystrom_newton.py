"""Newton's method with a randomised Nyström approximation of the Hessian."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.line_search import Armijo, LineSearch, rounding
from steepest.solvers.nystrom import Nystrom, nystrom
from steepest.solvers.problem import Iterate

FIRST = 8
"""Rank that an adaptive one starts from."""


@dataclasses.dataclass(frozen=True)
class NystromNewton(Method):
    """A line search along the step p of (H + rho) p = -g, with the Hessian H known by a sketch (`nystrom`).

    All products of a sketch are one batched call, which costs as much as a few single ones where the function leaves
    constant matrices on the right: x @ a.mT is one product for the whole batch, a @ x in torch a copy of a for each of
    its vectors. The step is the solution with the approximation in H's place, by
    Woodbury's formula, or what conjugate gradients make of it, preconditioned by the approximation, until the residual
    is below min(1/2, (|g| / |g_0|)^(1/2)) |g|, or a direction of negative curvature is met: the tail of superlinear
    convergence does not depend on the rank. Of negative eigenvalues the approximation takes the size: a shift that
    makes all of them positive would have to be as large as the most negative, and would shorten the step in every
    other direction as well.

    rho = damping w_1 |g| / |g_0|, where w_1 is the largest eigenvalue that is seen: regularisation that goes to
    zero with the gradient does not cost the order of convergence (Li, Fukushima, Qi and Yamashita 2004). Where the
    sketched step is all, the directions that the sketch has not seen are given the curvature of the smallest eigenvalue
    that it has.

    Args:
        rank: vectors in a sketch. None: from 8 on, doubled after a step whose conjugate gradients took more than half
            as many iterations, and halved after one where they took less than an eighth.
        refine: iterations of conjugate gradients at most. 0: the sketched step alone; None: as many as the tangent
            space has dimensions.
        damping: of rho, relative.
        every: steps for which a sketch is used; meanwhile its vectors are carried along.
        line_search: how far to go; the step itself is tried first.

    Frangella, Tropp and Udell 2021, "Randomized Nyström preconditioning" (2110.02820), of which this is the form for
    Newton's equation; in frames it is that of a Riemannian Nyström approximation, whose sketch is Gaussian on the
    tangent space.

    >>> from steepest import Sphere, minimize
    >>> from steepest.solvers import NystromNewton
    >>> a = torch.diag(0.5 ** torch.arange(30.0))
    >>> x0 = Sphere().random_point((30,), generator=torch.Generator().manual_seed(0))
    >>> result = minimize(lambda x: -x @ a @ x, x0, Sphere(), NystromNewton(rank=5), tolerance=1e-4)
    >>> round(result.value, 4), result.success
    (-1.0, True)
    """

    rank: int | None = None
    refine: int | None = None
    damping: float = 1e-3
    every: int = 5
    line_search: LineSearch = dataclasses.field(default_factory=Armijo)

    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_range("rank", 1 if self.rank is None else self.rank, 1)
        check_range("refine", self.refine or 0)
        check_range("damping", self.damping)
        check_range("every", self.every, 1)
        if self.rank is None and self.refine == 0:
            raise ValueError(
                "rank: got None with refine=0, expected a number: an adaptive rank follows the number of iterations of "
                "conjugate gradients, and without these there is none"
            )
        object.__setattr__(self, "line_search", LineSearch.from_spec(self.line_search))

    def init(self, at: Iterate) -> State:
        """No sketch."""
        return {"rank": self.rank or FIRST, "first": at.norm, "sketch": None, "age": 0}

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """A sketch if it is time, the step by it or from it, and a line search."""
        low = self._sketch(at, state)
        relative = min(at.norm / (state["first"] or 1.0), 1.0)
        floor = torch.finfo(at.gradient.dtype).eps * low.largest
        rho = max(self.damping * low.largest * relative, floor) or max(at.norm, 1e-300)
        inverse = functools.partial(low.solve, shift=rho)
        p, count = -inverse(at.gradient), 0
        if self.refine != 0:
            limit = at.size if self.refine is None else self.refine
            residual = max(min(0.5, math.sqrt(relative)) * at.norm, at.problem.tolerance / 2)
            p, count = preconditioned(at, inverse, rho, residual, limit)
        t, to = self._searched(at, p)
        note = {"step": t, "rank": len(low.values), "inner": count}
        return to, {
            **state,
            **self._kept(low, at, to, state),
            "rank": self._rank(at, state["rank"], count),
            "note": note,
        }

    def _searched(self, at: Iterate, p: Tensor) -> tuple[float, Iterate]:
        slope, full = float(at.gradient @ p), at.move(p)
        noise = 10 * rounding(at)
        if -slope < noise and full.value <= at.value + noise and full.norm < at.norm:
            return 1.0, full
        found = self.line_search.search(at, p, slope, 1.0)
        if found is None:
            raise Stop("no step decreases the function: rounding, or a gradient that is not its gradient")
        return found

    def _sketch(self, at: Iterate, state: State) -> Nystrom:
        if state["sketch"] is not None:
            return Nystrom(*state["sketch"])
        low = nystrom(at, state["rank"], at.problem.generator(state["iteration"], device=at.gradient.device))
        if not low.values.isfinite().all():
            raise Stop("products with the Hessian are not finite")
        return low

    def _kept(self, low: Nystrom, at: Iterate, to: Iterate, state: State) -> dict[str, Any]:
        """The sketch at the next point, if it is to be used there."""
        if state["age"] + 1 >= self.every or not len(low.values):
            return {"sketch": None, "age": 0}
        vectors = torch.linalg.qr(at.carry(low.vectors, to).mT)[0].mT.contiguous()
        return {"sketch": [vectors, low.values, low.complete], "age": state["age"] + 1}

    def _rank(self, at: Iterate, rank: int, count: int) -> int:
        if self.rank is not None:
            return rank
        return min(2 * rank, at.size) if 2 * count > rank else max(rank // 2, 2) if 8 * count < rank else rank

    @classmethod
    def examples(cls) -> list[Method]:
        """An adaptive rank, and the sketched step alone."""
        return [cls(), cls(rank=30, refine=0, every=1)]


def preconditioned(
    at: Iterate, inverse: Callable[[Tensor], Tensor], shift: float, residual: float, limit: int
) -> tuple[Tensor, int]:
    """The p of (H + shift) p = -g by conjugate gradients preconditioned with `inverse`, to a residual, or as far as the
    curvature is positive; the preconditioned -g where it is not from the first. And how many products it took.

    Dembo and Steihaug 1983; Nocedal and Wright 2006, algorithm 7.1.
    """
    r = at.gradient
    z = inverse(r)
    p, d, rz = torch.zeros_like(r), -z, float(r @ z)
    for count in range(1, limit + 1):
        hd = at.product(d) + shift * d
        curvature = float(d @ hd)
        if not curvature > 0:
            return (p if count > 1 else d), count
        p, r = p + rz / curvature * d, r + rz / curvature * hd
        if float(torch.linalg.vector_norm(r)) <= residual:
            break
        z = inverse(r)
        before, rz = rz, float(r @ z)
        d = rz / before * d - z
    return p, count
