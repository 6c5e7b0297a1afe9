"""What `minmax` has found."""

from __future__ import annotations

import dataclasses
from typing import Any

from steepest.solvers.problem import Evaluations
from steepest.solvers.result import Record


@dataclasses.dataclass(frozen=True)
class MinMaxResult:
    """What `minmax` returns: the pair with the smallest gradient, and how it was found.

    >>> from steepest import minmax
    >>> result = minmax(lambda x, y: x @ x + x @ y - y @ y, torch.ones(2), torch.ones(2))
    >>> result.success, result.gradient_norm_y < 1e-6
    (True, True)
    """

    x: Any
    """Where the function is to be low."""
    y: Any
    """Where it is to be high."""
    value: float
    gradient_norm: float
    """Riemannian norm of the gradient, of both parts together."""
    gradient_norm_x: float
    gradient_norm_y: float
    iterations: int
    evaluations: Evaluations
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
            f"value {self.value:.15g}, gradient norm {self.gradient_norm:.3g} ({self.gradient_norm_x:.3g} of x, "
            f"{self.gradient_norm_y:.3g} of y), after {self.iterations} iterations in {self.seconds:.2f} s\n"
            f"{self.evaluations}"
        )

    def plot(self) -> Any:
        """A matplotlib figure: gradient norm against iterations and against seconds."""
        from steepest.solvers.figures import convergence

        return convergence({type(self.method).__name__: self})  # type: ignore[dict-item]
