"""What a method for finite sums is: an epoch, from one point to the next."""

from __future__ import annotations

import abc
import math
from typing import ClassVar

from torch import Tensor

from steepest.checks import check_range
from steepest.solvers.base import State
from steepest.solvers.finite_sum.terms import FiniteSum
from steepest.solvers.problem import Iterate
from steepest.spec import Spec


class SumMethod(Spec, abc.ABC):
    """A way to minimise a mean of many terms: a frozen dataclass whose fields are its options, `rate` among them.

    The state holds "rate", which the driver halves where an epoch has failed, "iteration", the number of epochs before
    this one, and what `epoch` adds, as plain numbers and tensors.

    >>> from steepest.solvers import SVRG, SumMethod
    >>> sorted(SumMethod.known), SumMethod.from_spec(SVRG(rate=0.5).to_spec())
    (['PerturbedSRG', 'SRG', 'SVRG', 'Stochastic'], SVRG(rate=0.5, steps=None, adaptation=None))
    """

    rate: float

    descends: ClassVar[bool] = True
    """Whether an epoch that ends above its start is a sign of too large a rate; what an epoch adds to the state under
    this name counts instead."""
    saddles: ClassVar[bool] = False
    """Whether it goes on where the gradient is small, and says itself when it has finished."""

    @abc.abstractmethod
    def epoch(self, at: Iterate, terms: FiniteSum, state: State) -> tuple[Iterate, State]:
        """The point after one epoch, and what changes in the state; raises `Stop` where there is none."""

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[SumMethod]:
        """Instances: what the tests run."""


def check_steps(rate: float, steps: int | None) -> None:
    """Refuse a rate that is not positive, and epochs without a step."""
    check_range("rate", rate, open_low=True)
    check_range("steps", 1 if steps is None else steps, 1)


def anchor(at: Iterate, terms: FiniteSum, state: State, adaptation: float | None) -> tuple[Tensor, bool]:
    """The gradient that an epoch starts from, and whether it is that of all terms: otherwise of as many as the mean
    squared length of the last epoch's directions asks for, `adaptation` divided by it."""
    spread = state.get("spread", 0.0)
    if adaptation is None or not adaptation < terms.n * spread:
        return terms.full(at), True
    size = max(math.ceil(adaptation / spread), terms.batch_size)
    if size >= terms.n:
        return terms.full(at), True
    return terms.part(at, terms.sample(size, state["iteration"], 1)), False
