"""What a method is: a state, and a step from one point to the next."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from steepest.manifolds.base import Manifold
from steepest.solvers.problem import Iterate
from steepest.spec import Spec

State = dict[str, Any]
"""Numbers, strings, tensors, and lists and dictionaries of them: what a checkpoint holds. Under "iteration" stands the
number of steps before this one, and under "note" what the table shows of the last step."""


class Stop(Exception):
    """Raised by a method's step when it cannot go on; its text is the reason in the result.

    Args:
        reason: why.
        converged: whether that is success, as when the simplex of Nelder and Mead has shrunk to a point.
    """

    def __init__(self, reason: str, converged: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.converged = reason, converged


class Method(Spec, abc.ABC):
    """A way to minimise: a frozen dataclass whose fields are its options.

    It is written for a flat vector of coordinates, `(n,)`: at a point `at` there are `at.value`, `at.gradient`, and
    products `at.product(z)` with the Hessian; `at.move(z)` is the next point, and `at.carry(z, to)` what becomes there
    of a vector. Points must not be kept in the state: it holds what a checkpoint can.

    To write a method, give `step`, and `init` if it remembers anything; `steepest.testing.check_solver` checks it.
    """

    order: ClassVar[int] = 1
    """Derivatives that it takes: 0, 1 or 2."""
    accuracy: ClassVar[float | None] = None
    """How far above an optimum of zero it may end in the common suite. None: as methods of its order may."""

    @property
    def curvature(self) -> bool:
        """Whether it asks for products with the Hessian, for which gradients keep their graphs."""
        return self.order == 2

    @property
    def steady(self) -> bool:
        """Whether many steps without progress, in the value or in the gradient, mean that rounding has been reached."""
        return self.order > 0

    def init(self, at: Iterate) -> State:
        """The state before the first step."""
        return {}

    @abc.abstractmethod
    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """The next point (the same where an attempt has failed and the next will differ) and the state there; raises
        `Stop` where there is none."""

    def fault(self, manifold: Manifold, x: Any) -> str:
        """Why it does not work on this manifold for points like x, and what would; the empty string where it does."""
        return ""

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[Method]:
        """Instances: what the common suite runs."""
