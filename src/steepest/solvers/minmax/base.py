"""What a method of `minmax` is."""

from __future__ import annotations

import abc
from typing import ClassVar

from steepest.solvers.base import State
from steepest.solvers.minmax.saddle import Saddle
from steepest.solvers.problem import Iterate
from steepest.spec import Spec


class MinMaxMethod(Spec, abc.ABC):
    """A way from one pair (x, y) to the next: a frozen dataclass whose fields are its options.

    It is written for one flat vector of coordinates of both points, those of x first. To write a method, give `step`,
    and `init` if it remembers anything.
    """

    energy: ClassVar[bool] = False
    """Whether its iterates are those of the function H = |grad f|^2 / 2, and not of f."""
    every: int = 1
    """Steps from one look at f and its gradient to the next."""

    @property
    def curvature(self) -> bool:
        """Whether it asks for products with the Hessian of the function that its iterates are of."""
        return False

    def init(self, saddle: Saddle, at: Iterate) -> State:
        """The state before the first step."""
        return {}

    @abc.abstractmethod
    def step(self, saddle: Saddle, at: Iterate, state: State) -> tuple[Iterate, State]:
        """The next point, and the state there; raises `steepest.solvers.Stop` where there is none."""

    def fault(self, saddle: Saddle, at: Iterate) -> str:
        """Why it does not work here, and what would; the empty string where it does."""
        return ""

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[MinMaxMethod]:
        """Instances: what the tests run."""
