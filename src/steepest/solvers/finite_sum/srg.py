"""Stochastic gradients by recursion: each step corrects the last one's direction."""

from __future__ import annotations

import dataclasses

import torch

from steepest.checks import check_range
from steepest.solvers.base import State
from steepest.solvers.finite_sum.base import SumMethod, anchor, check_steps
from steepest.solvers.finite_sum.svrg import corrected
from steepest.solvers.finite_sum.terms import FiniteSum
from steepest.solvers.problem import Iterate


@dataclasses.dataclass(frozen=True)
class SRG(SumMethod):
    """Stochastic recursive gradient, also known as SARAH and SPIDER.

    An epoch begins with a step against the full gradient v. The direction at the next point y after a step from x is

        v <- g_B(y) - carry(g_B(x) - v, x to y)

    carried along the path, by one step at a time: nothing is carried far.

    Args:
        rate: of the steps. Halved where an epoch ends above its start.
        steps: of an epoch. None: mini-batches in one pass; with the full gradient an epoch then costs three passes.
        shrink: an epoch ends early where the direction is shorter than this times the one that it began with (R-SRG+);
            zero: never.
        longest: a step is shortened to this length, as R-SPIDER's normalised steps are. None: never.
        adaptation: of the number of terms in the full gradient, as in `SVRG`.

    Kasai, Sato and Mishra 2018, "Riemannian stochastic recursive gradient algorithm", algorithms 1 and 2; Zhou, Yuan
    and Feng 2019, "Faster first-order methods for stochastic non-convex optimization on Riemannian manifolds"
    (1811.08109), whose step is `longest` / \\|v\\|; Han and Gao 2020 (2007.01494).

    >>> from steepest import Sphere
    >>> from steepest.solvers import SRG, minimize_sum
    >>> data = torch.eye(3).double() * torch.tensor([1.0, 2.0, 3.0])
    >>> x0 = torch.full((3,), 3**-0.5).double()
    >>> result = minimize_sum(lambda x, i: -(data[i] @ x) ** 2, 3, x0, Sphere(), SRG(0.05), batch_size=1)
    >>> round(result.value, 9), result.success
    (-3.0, True)
    """

    rate: float = 0.1
    steps: int | None = None
    shrink: float = 0.0
    longest: float | None = None
    adaptation: float | None = None

    def __post_init__(self) -> None:
        check_steps(self.rate, self.steps)
        check_range("shrink", self.shrink, 0, 1, open_high=True)
        check_range("longest", 1.0 if self.longest is None else self.longest, open_low=True)
        check_range("adaptation", self.adaptation or 0.0)

    def epoch(self, at: Iterate, terms: FiniteSum, state: State) -> tuple[Iterate, State]:
        """The full gradient, then the recursion."""
        v, exact = anchor(at, terms, state, self.adaptation)
        squares = [v @ v]
        before, at = at, at.move(-self._step(state["rate"], squares[0]) * v)
        for index in terms.batches((self.steps or terms.batches_per_pass) - 1, state["iteration"]):
            v = corrected(terms, index, at, before, v)
            squares.append(v @ v)
            if self.shrink and squares[-1] < self.shrink**2 * squares[0]:
                break
            before, at = at, at.move(-self._step(state["rate"], squares[-1]) * v)
        spread = float(torch.stack(squares).mean())
        return at, {"spread": spread, "descends": exact, "note": {"rate": state["rate"]}}

    def _step(self, rate: float, square: torch.Tensor) -> torch.Tensor | float:
        return rate if self.longest is None else (self.longest * square.rsqrt()).clamp_max(rate)

    @classmethod
    def examples(cls) -> list[SumMethod]:
        """Plain, with all options."""
        return [cls(), cls(steps=9, shrink=0.05, longest=0.5, adaptation=0.5)]
