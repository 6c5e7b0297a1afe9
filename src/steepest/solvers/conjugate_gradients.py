"""Nonlinear conjugate gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.line_search import Armijo, LineSearch
from steepest.solvers.problem import Iterate


def _fletcher_reeves(g: Tensor, y: Tensor, old: Tensor, p: Tensor) -> Tensor:
    return (g @ g) / (old @ old)


def _polak_ribiere(g: Tensor, y: Tensor, old: Tensor, p: Tensor) -> Tensor:
    return ((g @ y) / (old @ old)).clamp_min(0)


def _hestenes_stiefel(g: Tensor, y: Tensor, old: Tensor, p: Tensor) -> Tensor:
    return ((g @ y) / (p @ y)).clamp_min(0)


def _liu_storey(g: Tensor, y: Tensor, old: Tensor, p: Tensor) -> Tensor:
    return (-(g @ y) / (p @ old)).clamp_min(0)


def _hager_zhang(g: Tensor, y: Tensor, old: Tensor, p: Tensor) -> Tensor:
    py = p @ y
    beta = (y @ g - 2 * (p @ g) * (y @ y) / py) / py
    return beta.maximum(-1 / (p.norm() * old.norm().clamp_max(0.01)))


BETAS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "fletcher-reeves": _fletcher_reeves,
    "polak-ribiere": _polak_ribiere,
    "hestenes-stiefel": _hestenes_stiefel,
    "liu-storey": _liu_storey,
    "hager-zhang": _hager_zhang,
}
"""The next direction is -g + beta p. Of the new gradient g, its change y, the old gradient and the old direction p, all
at the new point."""


@dataclasses.dataclass(frozen=True)
class ConjugateGradients(Method):
    """Directions p = -g + beta p with the last direction carried to the new point.

    With g the new gradient, g' and p the last gradient and direction, and y = g - g':

    | `beta` | |
    |---|---|
    | "fletcher-reeves" | g.g / g'.g' |
    | "polak-ribiere" | max(0, g.y / g'.g'), PR+ |
    | "hestenes-stiefel" | max(0, g.y / p.y) |
    | "liu-storey" | max(0, -g.y / p.g') |
    | "hager-zhang" | (y - 2 p y.y / p.y).g / p.y, at least -1 / (\\|p\\| min(0.01, \\|g'\\|)) |

    The default line search compares two values, and looks at slopes only where values no longer tell: half the work of
    the Wolfe conditions.

    It starts again with -g where p is no direction of descent, and where successive gradients are far from orthogonal,
    \\|g.g'\\| > `powell` g.g (Powell 1977).

    Hager and Zhang 2006, "A survey of nonlinear conjugate gradient methods"; Sato 2022 (2112.02572), on manifolds.

    >>> from steepest import Grassmann, minimize
    >>> a = torch.diag(torch.arange(1.0, 6.0))
    >>> x0 = Grassmann().random_point((5, 2))
    >>> result = minimize(lambda x: (x.T @ a @ x).trace(), x0, Grassmann(), "ConjugateGradients", tolerance=1e-3)
    >>> round(result.value, 3)
    3.0
    """

    beta: str = "hestenes-stiefel"
    line_search: LineSearch = dataclasses.field(default_factory=lambda: Armijo(refine=True))
    powell: float = 0.5

    def __post_init__(self) -> None:
        if self.beta not in BETAS:
            raise ValueError(f"beta: unknown {self.beta!r}, expected one of {', '.join(BETAS)}")
        check_range("powell", self.powell, open_low=True)
        object.__setattr__(self, "line_search", LineSearch.from_spec(self.line_search))

    def init(self, at: Iterate) -> State:
        """The first direction is -g, the first step a unit vector or shorter."""
        return {"direction": -at.gradient, "step": 1 / max(at.norm, 1.0)}

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """A line search along the direction, then the next direction."""
        p = state["direction"]
        slope = float(at.gradient @ p)
        found = self.line_search.search(at, p, slope, state["step"])
        if found is None:
            if p.equal(-at.gradient):
                raise Stop("no step decreases the function: rounding, or a gradient that is not its gradient")
            return at, self.init(at)
        t, to = found
        p, beta = self._direction(at, to, p)
        guess = t * slope / min(float(to.gradient @ p), -1e-300)
        return to, {"direction": p, "step": min(guess, 10 * t), "note": {"step": t, "beta": beta}}

    def _direction(self, at: Iterate, to: Iterate, p: Tensor) -> tuple[Tensor, float]:
        g = to.gradient
        old, p = at.carry(torch.stack([at.gradient, p]), to)
        beta = BETAS[self.beta](g, g - old, old, p)
        after = beta * p - g
        kept = (beta.isfinite() & ((g @ old).abs() <= self.powell * (g @ g)) & (g @ after < 0)).item()
        return (after, float(beta)) if kept else (-g, 0.0)

    @classmethod
    def examples(cls) -> list[Method]:
        """Each rule for beta."""
        return [cls(beta) for beta in BETAS]
