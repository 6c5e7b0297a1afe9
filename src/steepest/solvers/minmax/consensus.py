"""Steps of a fixed length along the Hamiltonian's gradient and the field of descent and ascent."""

from __future__ import annotations

import dataclasses

from steepest.checks import check_range
from steepest.solvers.base import State
from steepest.solvers.minmax.base import MinMaxMethod
from steepest.solvers.minmax.saddle import Saddle
from steepest.solvers.problem import Iterate


@dataclasses.dataclass(frozen=True)
class Consensus(MinMaxMethod):
    """A step along -grad H + weight (-grad_x f, grad_y f), with H = |grad f|^2 / 2 and so grad H = Hess f [grad f].

    The first part draws to stationary points of any kind, the second away from those that are no saddle.

    Args:
        step_size: length, in units of that direction.
        weight: of descent in x and ascent in y; zero leaves steepest descent of H with a fixed step (RHM-SD-F).

    Han, Mishra, Jawanpuria and Gao 2023 (2204.11418), section 5 (RHM-CON); Mescheder, Nowozin and Geiger 2017
    (1705.10461), consensus optimisation in flat space, where the weight stands on the other part.

    >>> from steepest.solvers import Consensus, minmax
    >>> minmax(lambda x, y: x @ y, torch.ones(2), torch.ones(2), method=Consensus(0.5), tolerance=1e-3).success
    True
    """

    step_size: float = 0.1
    weight: float = 0.5

    def __post_init__(self) -> None:
        check_range("step_size", self.step_size, open_low=True)
        check_range("weight", self.weight)

    @property
    def curvature(self) -> bool:
        """It does."""
        return True

    def step(self, saddle: Saddle, at: Iterate, state: State) -> tuple[Iterate, State]:
        """One product with the Hessian, one retraction."""
        p = self.weight * saddle.field(at) - at.product(at.gradient)
        return at.move(self.step_size * p), {}

    @classmethod
    def examples(cls) -> list[MinMaxMethod]:
        """With and without descent and ascent."""
        return [cls(), cls(0.1, 0.0)]
