"""Normalised momentum above, a level below that moves now and then."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import torch

from steepest.checks import check_range
from steepest.solvers.bilevel.base import BilevelMethod, Standing
from steepest.solvers.bilevel.cg import CG
from steepest.solvers.bilevel.hypergradient import Hypergradient, implicit_covector
from steepest.solvers.bilevel.levels import Levels
from steepest.solvers.problem import Problem


@dataclasses.dataclass(frozen=True)
class BOREP(BilevelMethod):
    """Bilevel optimisation with initialisation refinement and periodic updates, in coordinates.

    First y takes `refinement` gradient steps of g(x, .). Then, in each iteration, with b = grad_y f,

        every `period` iterations:  y takes `lower_steps` gradient steps
        z <- z - adjoint_step (Hess_y g z - b)
        m <- beta m + (1 - beta) (grad_x f - D_x grad_y g [z])
        x <- retract(x, -t m / |m|)

    so that a step is as long as t whatever the gradient, which a smoothness that grows with the gradient calls for; z
    and m are carried with y and x.

    Args:
        step: t of the first iteration; that of iteration k is t / (1 + decay k).
        decay: as above. The paper's step is constant, and x then ends at a distance of about t.
        beta: of the momentum.
        refinement: gradient steps before the first iteration.
        period: iterations between updates of y.
        lower_steps, lower_step: gradient steps of an update, and their length.
        adjoint_step: of z, less than twice the inverse of the largest eigenvalue of Hess_y g.
        hypergradient: for the error that the result states; no iteration uses it.

    Hao, Gong and Liu 2024 (2401.09587), algorithm 1, and their code. All gradients here are of the whole functions; the
    projection of y onto a ball, which the theory has for the tails of stochastic gradients, is in neither code. As in
    theirs, m takes the z of the same iteration.

    >>> from steepest.solvers import BOREP, bilevel
    >>> upper, lower = lambda x, y: (y - 1).square().sum(), lambda x, y: (y - x.exp()).square().sum()
    >>> method = BOREP(0.1, decay=0.1, lower_step=0.4, adjoint_step=0.4)
    >>> result = bilevel(upper, lower, torch.ones(2), torch.ones(2), method=method, max_iterations=150)
    >>> result.x.abs().max().item() < 0.05
    True
    """

    step: float = 0.1
    decay: float = 0.0
    beta: float = 0.9
    refinement: int = 50
    period: int = 4
    lower_steps: int = 5
    lower_step: float = 0.1
    adjoint_step: float = 0.1
    hypergradient: Hypergradient = dataclasses.field(default_factory=CG)

    descends: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("step", "lower_step", "adjoint_step"):
            check_range(name, getattr(self, name), open_low=True)
        check_range("decay", self.decay)
        check_range("beta", self.beta, 0, 1, open_high=True)
        check_range("refinement", self.refinement)
        check_range("period", self.period, 1)
        check_range("lower_steps", self.lower_steps, 1)
        object.__setattr__(self, "hypergradient", Hypergradient.from_spec(self.hypergradient))

    def walk(self, levels: Levels, x: Any, y: Any) -> Iterator[Standing]:
        """One product with the Hessian and one derivative across an iteration."""
        y = self._descended(levels, x, y, self.refinement)
        pair, k = levels.at(x, y), 0
        at = Problem(lambda x: levels.upper(x, y), levels.manifold_x).at(x)  # to move and to carry
        m, z = None, torch.zeros_like(pair.pressure)
        while True:
            z = z - self.adjoint_step * (pair.below.product(z) - pair.pressure)
            covector = implicit_covector(pair, z)
            with torch.no_grad():
                h = at.ravel(levels.manifold_x._pull(at.frame, covector))
            m = (1 - self.beta) * h if m is None else self.beta * m + (1 - self.beta) * h
            note = {"step": self.step / (1 + self.decay * k)}
            value = levels.value(at.x, pair.y)
            yield Standing(at.x, pair.y, value, float(h.norm()), pair.below.norm, covector, None, note)
            to = at.move(-note["step"] * m / m.norm().clamp_min(torch.finfo(m.dtype).tiny))
            m, at, k = at.carry(m, to), to, k + 1
            y = self._descended(levels, at.x, pair.y, self.lower_steps) if k % self.period == 0 else pair.y
            after = levels.at(at.x, y)
            z, pair = pair.below.carry(z, after.below), after

    def _descended(self, levels: Levels, x: Any, y: Any, steps: int) -> Any:
        below = levels.problem(x).at(y)
        for _ in range(steps):
            below = below.move(-self.lower_step * below.gradient)
        return below.x

    @classmethod
    def examples(cls) -> list[BilevelMethod]:
        """The default."""
        return [cls()]
