"""Stochastic gradients corrected by a full one at an anchor."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.solvers.base import State
from steepest.solvers.finite_sum.base import SumMethod, anchor, check_steps
from steepest.solvers.finite_sum.terms import FiniteSum
from steepest.solvers.problem import Iterate


@dataclasses.dataclass(frozen=True)
class SVRG(SumMethod):
    """Stochastic variance reduced gradient.

    An epoch begins with the full gradient g at its first point a, the anchor. A step from x goes against

        g_B(x) - carry(g_B(a) - g, a to x)

    with the gradients g_B of the same mini-batch at both points. The mean over mini-batches is the full gradient at x,
    and the variance vanishes as x and a approach the optimum, so that a constant rate converges linearly where f is
    strongly convex or gradient-dominated. The last point is the next anchor (the papers' option I).

    The difference is carried from the anchor to x in one go: every step has another mini-batch at the anchor, so that
    carrying along the path would cost k carries in the k-th step, and the correction has mean zero for any linear carry
    that both parts share.

    Args:
        rate: of the steps. Halved where an epoch ends above its start.
        steps: of an epoch. None: mini-batches in one pass; with the full gradient an epoch then costs three passes.
        adaptation: None: the gradient at the anchor is of all terms. Otherwise of as many as this number divided by the
            mean squared length of the last epoch's directions: few as long as gradients are long (Han and Gao 2020,
            "Variance reduction for Riemannian non-convex optimization with batch size adaptation", 2007.01494; the
            number is their alpha_1 sigma^2).

    Zhang, Reddi and Sra 2016, "Riemannian SVRG" (1605.07147), algorithm 1; Sato, Kasai and Mishra 2019 (1702.05594),
    algorithm 1, for retractions and vector transports.

    >>> from steepest import Sphere
    >>> from steepest.solvers import SVRG, minimize_sum
    >>> data = torch.eye(3).double() * torch.tensor([1.0, 2.0, 3.0])
    >>> x0 = torch.full((3,), 3**-0.5).double()
    >>> result = minimize_sum(lambda x, i: -(data[i] @ x) ** 2, 3, x0, Sphere(), SVRG(0.05), batch_size=1)
    >>> round(result.value, 9), result.success
    (-3.0, True)
    """

    rate: float = 0.1
    steps: int | None = None
    adaptation: float | None = None

    def __post_init__(self) -> None:
        check_steps(self.rate, self.steps)
        check_range("adaptation", self.adaptation or 0.0)

    def epoch(self, at: Iterate, terms: FiniteSum, state: State) -> tuple[Iterate, State]:
        """The anchor's gradient, then corrected steps; the first one, at the anchor itself, needs no mini-batch."""
        start, steps = at, self.steps or terms.batches_per_pass
        full, exact = anchor(at, terms, state, self.adaptation)
        squares = [full @ full]
        at = at.move(-state["rate"] * full)
        for index in terms.batches(steps - 1, state["iteration"]):
            v = corrected(terms, index, at, start, full)
            squares.append(v @ v)
            at = at.move(-state["rate"] * v)
        spread = float(torch.stack(squares).mean())
        return at, {"spread": spread, "descends": exact, "note": {"rate": state["rate"]}}

    @classmethod
    def examples(cls) -> list[SumMethod]:
        """With all terms at the anchor, and with as many as needed."""
        return [cls(), cls(steps=9, adaptation=0.5)]


def corrected(terms: FiniteSum, index: Tensor, at: Iterate, start: Iterate, v: Tensor) -> Tensor:
    """g_B at a point, corrected by what g_B is short of v at another: `(d,)`."""
    return terms.part(at, index) - start.carry(terms.part(start, index) - v, at)
