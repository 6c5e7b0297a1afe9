"""Steps of one length."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from steepest.checks import check_range
from steepest.solvers.line_search import Found, LineSearch
from steepest.solvers.problem import Iterate


@dataclasses.dataclass(frozen=True)
class FixedStep(LineSearch):
    """No search: always the same t, whether the function goes down or up, as theorems on descent have it.

    Args:
        t: in units of the direction.

    >>> from steepest import minimize
    >>> from steepest.solvers import FixedStep, SteepestDescent
    >>> method = SteepestDescent(FixedStep(0.25), barzilai_borwein=False)
    >>> result = minimize(lambda x: x @ x, torch.ones(2), method=method, max_iterations=3)
    >>> result.x.tolist()
    [0.125, 0.125]
    """

    t: float = 0.1

    slopes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("t", self.t, open_low=True)

    def search(
        self, at: Iterate, p: Tensor, slope: float, initial: float, reference: float | None = None
    ) -> Found | None:
        """t, if the function is finite there."""
        to = at.move(self.t * p)
        return (self.t, to) if to.value < float("inf") else None
