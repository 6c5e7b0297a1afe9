"""The hypergradient by a truncated series."""

from __future__ import annotations

import dataclasses
import math

import torch

from steepest.checks import check_range
from steepest.solvers.bilevel.hypergradient import Estimate, Hypergradient, implicit_covector
from steepest.solvers.bilevel.levels import Pair

POWERS = 8
"""Steps of the power method for the largest eigenvalue: the series converges with a step of up to twice its inverse."""


@dataclasses.dataclass(frozen=True)
class Neumann(Hypergradient):
    """v = t sum_{i < terms} (I - t Hess_y g)^i grad_y f: its error falls by 1 - t mu a term, with the smallest
    eigenvalue mu of the Hessian.

    Args:
        terms: of the series, one product with the Hessian each.
        step: t, less than twice the inverse of the largest eigenvalue. None: its inverse, by the power method.

    Han, Mishra, Jawanpuria and Takeda 2024 (2402.03883), TNS.

    >>> from steepest.solvers import Neumann, RHGD, bilevel
    >>> upper, lower = lambda x, y: (y - 1).square().sum(), lambda x, y: (y - x.exp()).square().sum()
    >>> bilevel(upper, lower, torch.ones(2), torch.ones(2), method=RHGD(Neumann(20, 0.4))).success
    True
    """

    terms: int = 50
    step: float | None = None

    def __post_init__(self) -> None:
        check_range("terms", self.terms, 1)
        check_range("step", 1.0 if self.step is None else self.step, open_low=True)

    def estimate(self, pair: Pair) -> Estimate:
        """The residual is the next term of the series, over t; the ratio of the last two tells 1 - t mu."""
        t = self.step or 1 / max(_largest(pair), torch.finfo(pair.below.dtype).tiny)
        r, v = pair.pressure, torch.zeros_like(pair.pressure)
        residual, curvature = float(r.norm()), math.inf
        rounding = 10 * torch.finfo(r.dtype).eps * residual
        for _ in range(self.terms):
            v, before = v + t * r, residual
            r = pair.below.conform(r - t * pair.below.product(r))
            residual = float(r.norm())
            if before > rounding:
                curvature = (1 - residual / before) / t
        return Estimate(implicit_covector(pair, v), pair.y, v, residual, curvature)

    @classmethod
    def examples(cls) -> list[Hypergradient]:
        """With a step of its own."""
        return [cls(), cls(20, 0.2)]


def _largest(pair: Pair) -> float:
    """Length of the Hessian times a unit vector, after some powers of it."""
    v, size = pair.pressure, 0.0
    for _ in range(POWERS):
        v = v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)
        v = pair.below.product(v)
        size = float(v.norm())
    return size
