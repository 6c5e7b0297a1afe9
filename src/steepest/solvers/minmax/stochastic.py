"""The Hamiltonian method from few terms of a sum."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from steepest.checks import check_range
from steepest.solvers.base import State
from steepest.solvers.minmax.base import MinMaxMethod
from steepest.solvers.minmax.saddle import Saddle
from steepest.solvers.problem import Iterate


@dataclasses.dataclass(frozen=True)
class StochasticHamiltonian(MinMaxMethod):
    """`Consensus` from two independent batches B and C of the terms of a sum, drawn with replacement.

    As |grad f|^2 / 2 is the mean over all pairs of terms of <grad f_i, grad f_j> / 2, its gradient is estimated without
    bias by (Hess f_B [grad f_C] + Hess f_C [grad f_B]) / 2; one batch for both would estimate the gradient of the mean
    of |grad f_i|^2 / 2, which is another function.

    Args:
        step_size: t of the first step.
        batch: terms in each of the two batches.
        weight: of descent in x and ascent in y, as in `Consensus`.
        decay: d in the step t / (1 + d k) of iteration k.
        every: steps between looks at the whole sum, which the tolerance and the history need.

    Han, Mishra, Jawanpuria and Gao 2023 (2204.11418), section 6 (RHM-SGD).

    >>> from steepest.solvers import StochasticHamiltonian, minmax
    >>> a = torch.eye(2) + torch.randn(50, 2, 2, generator=torch.Generator().manual_seed(0)) / 4
    >>> f = lambda x, y, index: a[index] @ y @ x
    >>> x0 = torch.ones(2)
    >>> minmax(f, x0, x0, method=StochasticHamiltonian(0.5), terms=50, tolerance=1e-3).success
    True
    """

    step_size: float = 0.1
    batch: int = 8
    weight: float = 0.0
    decay: float = 0.0
    every: int = 20

    def __post_init__(self) -> None:
        check_range("step_size", self.step_size, open_low=True)
        check_range("batch", self.batch, 1)
        check_range("weight", self.weight)
        check_range("decay", self.decay)
        check_range("every", self.every, 1)

    @property
    def curvature(self) -> bool:
        """It does."""
        return True

    def step(self, saddle: Saddle, at: Iterate, state: State) -> tuple[Iterate, State]:
        """Two gradients and two products, of batches."""
        k = state["iteration"]
        p = self.direction(saddle, at, k)
        return at.move(self.step_size / (1 + self.decay * k) * p), {}

    def direction(self, saddle: Saddle, at: Iterate, k: int) -> Tensor:
        """The estimate of -grad H + weight (-grad_x f, grad_y f) in iteration k, `(n,)`."""
        b, c = (saddle.sample(at, self.batch, k, i) for i in range(2))
        down = (b.product(c.gradient) + c.product(b.gradient)) / 2
        return self.weight * (saddle.field(b) + saddle.field(c)) / 2 - down

    def fault(self, saddle: Saddle, at: Iterate) -> str:
        """It needs a sum."""
        return "" if saddle.terms else "needs a sum: pass `terms`, their number, and fun(x, y, index)"

    @classmethod
    def examples(cls) -> list[MinMaxMethod]:
        """With descent and ascent."""
        return [cls(0.1, 16, 0.5, 0.001)]
