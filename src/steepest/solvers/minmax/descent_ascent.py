"""Descent in one point, ascent in the other."""

from __future__ import annotations

import dataclasses

from steepest.checks import check_range
from steepest.solvers.base import State
from steepest.solvers.minmax.base import MinMaxMethod
from steepest.solvers.minmax.saddle import Saddle
from steepest.solvers.problem import Iterate


@dataclasses.dataclass(frozen=True)
class DescentAscent(MinMaxMethod):
    """A gradient step down in x and up in y, at the same time.

    It converges where f is strongly convex in x and strongly concave in y and the step is short; on a bilinear f it
    spirals outwards, whatever the step.

    Args:
        step_size: of x.
        ratio: step of y over that of x; many times one where the maximum is to be followed (two time scales).

    Arrow, Hurwicz and Uzawa 1958; Huang and Gao 2023 (2010.06097), on manifolds (RGDA).

    >>> from steepest.solvers import DescentAscent, minmax
    >>> f = lambda x, y: x @ x + x @ y - y @ y
    >>> minmax(f, torch.ones(2), torch.ones(2), method=DescentAscent(0.2)).success
    True
    """

    step_size: float = 0.1
    ratio: float = 1.0

    def __post_init__(self) -> None:
        check_range("step_size", self.step_size, open_low=True)
        check_range("ratio", self.ratio, open_low=True)

    def step(self, saddle: Saddle, at: Iterate, state: State) -> tuple[Iterate, State]:
        """One retraction."""
        return at.move(self.step_size * saddle.field(at, self.ratio)), {}

    @classmethod
    def examples(cls) -> list[MinMaxMethod]:
        """One time scale and two."""
        return [cls(), cls(0.05, 2.0)]
