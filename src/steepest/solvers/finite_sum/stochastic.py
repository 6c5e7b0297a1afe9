"""Plain stochastic gradients."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from steepest.checks import check_range
from steepest.solvers.base import State
from steepest.solvers.finite_sum.base import SumMethod, check_steps
from steepest.solvers.finite_sum.terms import FiniteSum
from steepest.solvers.problem import Iterate


@dataclasses.dataclass(frozen=True)
class Stochastic(SumMethod):
    """Stochastic gradient descent with steps that become shorter: what the other methods are compared with.

    After k epochs, fractions of them included, the step is `rate` / (1 + `decay` k). With no decay it ends in a
    neighbourhood of the optimum whose size is proportional to the rate.

    Bonnabel 2013, "Stochastic gradient descent on Riemannian manifolds" (1111.5280).

    >>> from steepest import Sphere
    >>> from steepest.solvers import Stochastic, minimize_sum
    >>> data = torch.eye(3) * torch.tensor([1.0, 2.0, 3.0])
    >>> x0 = torch.full((3,), 3**-0.5)
    >>> result = minimize_sum(lambda x, i: -(data[i] @ x) ** 2, 3, x0, Sphere(), Stochastic(0.05), batch_size=1)
    >>> abs(result.value + 3) < 0.1
    True
    """

    rate: float = 0.1
    decay: float = 0.1

    descends: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_steps(self.rate, None)
        check_range("decay", self.decay)

    def epoch(self, at: Iterate, terms: FiniteSum, state: State) -> tuple[Iterate, State]:
        """One pass over the terms."""
        steps, rate = terms.batches_per_pass, state["rate"]
        for k, index in enumerate(terms.batches(steps, state["iteration"])):
            rate = state["rate"] / (1 + self.decay * (state["iteration"] + k / steps))
            at = at.move(-rate * terms.part(at, index))
        return at, {"note": {"step": rate}}

    @classmethod
    def examples(cls) -> list[SumMethod]:
        """With and without decay."""
        return [cls(), cls(decay=0.0)]
