"""What a run has found, and how it went."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from steepest.solvers.problem import Evaluations


class Record(NamedTuple):
    """One line of the history: the state of affairs after so many iterations."""

    iteration: int
    value: float
    gradient_norm: float
    """NaN for methods without gradients."""
    seconds: float
    """Of this run and of those that it has resumed."""
    evaluations: int
    """Of values, gradients and products with the Hessian."""
    note: dict[str, float | str]
    """What the method says of its last step: its length, the radius of a trust region."""

    def row(self) -> str:
        """A line of the table."""
        note = "  ".join(f"{k} {v if isinstance(v, str) else format(v, '.3g')}" for k, v in self.note.items())
        numbers = f"{self.iteration:>6}  {self.value:>+23.15e}  {self.gradient_norm:>12.5e}"
        return f"{numbers}  {self.evaluations:>8}  {self.seconds:>8.2f}  {note}".rstrip()


HEADER = f"{'step':>6}  {'value':>23}  {'gradient':>12}  {'evals':>8}  {'seconds':>8}"
"""Of the table."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What `minimize` returns.

    >>> from steepest import minimize
    >>> result = minimize(lambda x: (x - 1).square().sum(), torch.zeros(2, 2))
    >>> result.success, result.x.tolist()
    (True, [[1.0, 1.0], [1.0, 1.0]])
    """

    x: Any
    """The best point that was found."""
    value: float
    gradient_norm: float
    """Riemannian norm of the gradient there; NaN for methods without gradients."""
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
            f"value {self.value:.15g}, gradient norm {self.gradient_norm:.3g}, after {self.iterations} iterations "
            f"in {self.seconds:.2f} s\n{self.evaluations}"
        )

    def plot(self, optimum: float | None = None) -> Any:
        """A matplotlib figure: gradient norm (and the value above `optimum`, where given) against iterations and
        against seconds. `figure.savefig("run.png")` writes it."""
        from steepest.solvers.figures import convergence

        return convergence({type(self.method).__name__: self}, optimum)
