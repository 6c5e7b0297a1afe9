"""Descent and ascent by the gradient at the point where they would lead."""

from __future__ import annotations

import dataclasses

import torch

from steepest.checks import check_range
from steepest.manifolds.tensors import each
from steepest.solvers.base import State
from steepest.solvers.minmax.base import MinMaxMethod
from steepest.solvers.minmax.saddle import Saddle
from steepest.solvers.problem import Iterate

CORRECTIONS = ("log", "carry")


@dataclasses.dataclass(frozen=True)
class ExtraGradient(MinMaxMethod):
    """A trial step of descent in x and ascent in y to a point w, then the step from z = (x, y) by the direction there.

    With F = (-grad_x f, grad_y f) and the step t, w = exp_z(t F(z)), and then, by `correction`:

    - "log": exp_w(t F(w) + log_w z), the Riemannian corrected extragradient;
    - "carry": the retraction from z along t F(w), carried to z as an optimiser's momentum is.

    Both are the extragradient method in flat space, and converge on a bilinear f for t < 1 / |Hess f|, where plain
    descent and ascent do not. "log" takes `exp` and `log` of the manifolds: where they have no formula, that is a
    search for geodesics in each step.

    Args:
        step_size: t.
        correction: as above.

    Korpelevich 1976; Zhang, Zhang and Sra 2022 (2202.06950), algorithm 1 (RCEG), and Jordan, Lin and
    Vlatakis-Gkaragkounis 2022 (2206.02041); Hu, Wang, Wang and Li 2023, transport in place of the correction.

    >>> from steepest.solvers import ExtraGradient, minmax
    >>> minmax(lambda x, y: x @ y, torch.ones(2), torch.ones(2), method=ExtraGradient(0.5), tolerance=1e-3).success
    True
    """

    step_size: float = 0.1
    correction: str = "log"

    def __post_init__(self) -> None:
        check_range("step_size", self.step_size, open_low=True)
        if self.correction not in CORRECTIONS:
            raise ValueError(f"correction: unknown {self.correction!r}, expected one of {', '.join(CORRECTIONS)}")

    def step(self, saddle: Saddle, at: Iterate, state: State) -> tuple[Iterate, State]:
        """Two gradients."""
        trial = self.step_size * saddle.field(at)
        if self.correction == "carry":
            there = at.move(trial)
            return at.move(self.step_size * there.carry(saddle.field(there), at)), {}
        manifold = saddle.manifold
        with torch.no_grad():
            there = saddle.problem.at(manifold.exp(at.x, at.push(trial)))
            v = there.push(self.step_size * saddle.field(there))
            v = each(torch.add, v, manifold.log(there.x, at.x))
            return saddle.problem.at(manifold.exp(there.x, v)), {}

    @classmethod
    def examples(cls) -> list[MinMaxMethod]:
        """Both corrections."""
        return [cls(), cls(0.1, "carry")]
