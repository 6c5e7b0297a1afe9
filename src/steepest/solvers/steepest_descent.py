"""Steepest descent."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from steepest.checks import check_range
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.line_search import Armijo, LineSearch
from steepest.solvers.problem import Iterate


@dataclasses.dataclass(frozen=True)
class SteepestDescent(Method):
    """A line search along the negative gradient.

    Args:
        line_search: how far to go.
        barzilai_borwein: try first the step <s, s> / <s, y> (and every other time <s, y> / <y, y>) of Barzilai and
            Borwein, from the last step s and the last change y of the gradient, both carried here. Without it, the
            step that would gain as much as the last one.
        memory: the decrease is from the highest of so many last values. The Barzilai-Borwein step gains from more than
            one; one makes every step a descent.

    Iannazzo and Porcelli 2018, "The Riemannian Barzilai-Borwein method with nonmonotone line search and the matrix
    geometric mean computation"; Nocedal and Wright 2006, equation 3.60, the other first step.

    >>> from steepest import Stiefel, minimize
    >>> a = torch.diag(torch.arange(1.0, 6.0))
    >>> x0 = Stiefel().random_point((5, 2))
    >>> result = minimize(lambda x: (x.T @ a @ x).trace(), x0, Stiefel(), "SteepestDescent", tolerance=1e-3)
    >>> round(result.value, 3)
    3.0
    """

    line_search: LineSearch = dataclasses.field(default_factory=Armijo)
    barzilai_borwein: bool = True
    memory: int = 5

    def __post_init__(self) -> None:
        check_range("memory", self.memory, 1)
        object.__setattr__(self, "line_search", LineSearch.from_spec(self.line_search))

    def init(self, at: Iterate) -> State:
        """The first step goes as far as a unit vector, or as the gradient where that is shorter."""
        return {"step": 1 / max(at.norm, 1.0), "values": [at.value]}

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """Armijo's t along -gradient."""
        slope = -(at.norm**2)
        found = self.line_search.search(at, -at.gradient, slope, state["step"], max(state["values"]))
        if found is None:
            raise Stop("no step decreases the function: rounding, or a gradient that is not its gradient")
        t, to = found
        values = [*state["values"], to.value][-self.memory :]
        return to, {"step": self._next(at, to, t, state["iteration"]), "values": values, "note": {"step": t}}

    def _next(self, at: Iterate, to: Iterate, t: float, iteration: int) -> float:
        if not self.barzilai_borwein:
            return min(max(t * at.norm**2 / max(to.norm**2, 1e-300), t), 10 * t)
        g = at.carry(at.gradient, to)
        return _barzilai_borwein(-t * g, to.gradient - g, iteration % 2 == 1) or 10 * t

    @classmethod
    def examples(cls) -> list[Method]:
        """With and without the Barzilai-Borwein step."""
        return [cls(), cls(barzilai_borwein=False, memory=1)]


def _barzilai_borwein(s: Tensor, y: Tensor, short: bool) -> float:
    """The long or the short step; zero where the curvature is not positive."""
    ss, sy, yy = float(s @ s), float(s @ y), float(y @ y)
    return min(max(sy / yy if short else ss / sy, 1e-10), 1e10) if sy > 0 and yy > 0 else 0.0
