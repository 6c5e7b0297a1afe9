"""What `bilevel` has found."""

from __future__ import annotations

import dataclasses
from typing import Any

from steepest.solvers.problem import Evaluations
from steepest.solvers.result import Record


@dataclasses.dataclass(frozen=True)
class BilevelResult:
    """What `bilevel` returns: the pair with the smallest gradients at both levels, and how it was found.

    >>> from steepest import bilevel
    >>> upper, lower = lambda x, y: (y - 1).square().sum(), lambda x, y: (y - x.exp()).square().sum()
    >>> result = bilevel(upper, lower, torch.ones(2), torch.ones(2))
    >>> result.success, result.lower_gradient_norm < 1e-4
    (True, True)
    """

    x: Any
    y: Any
    """About where the lower function is lowest, given x."""
    value: float
    """Of the upper function at both, less what y's distance from the minimum adds to it in first order, where the
    method knows."""
    gradient_norm: float
    """Riemannian norm of the estimate of the hypergradient."""
    gradient_error: float
    """How far that may be from the hypergradient (`Hypergradient.error`)."""
    lower_gradient_norm: float
    """Riemannian norm of the lower function's gradient in y."""
    iterations: int
    evaluations: Evaluations
    """Of the upper function."""
    lower_evaluations: Evaluations
    """Of the lower function; products are those with its Hessian, and derivatives across."""
    seconds: float
    reason: str
    """Why it ended."""
    success: bool
    """Whether that is the accuracy that was asked for."""
    history: list[Record]
    method: Any

    def __repr__(self) -> str:
        return (
            f"{type(self.method).__name__}: {self.reason} (success={self.success})\n"
            f"value {self.value:.15g}, hypergradient norm {self.gradient_norm:.3g} (error about "
            f"{self.gradient_error:.2g}), lower gradient norm {self.lower_gradient_norm:.3g}, after {self.iterations} "
            f"iterations in {self.seconds:.2f} s\nupper: {self.evaluations}\n"
            f"lower: {self.lower_evaluations}"
        )

    def plot(self, optimum: float | None = None) -> Any:
        """A matplotlib figure: hypergradient norm (and the value above `optimum`, where given) against iterations and
        against seconds."""
        from steepest.solvers.figures import convergence

        return convergence({type(self.method).__name__: self}, optimum)  # type: ignore[dict-item]
