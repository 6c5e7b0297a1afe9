"""The hypergradient by differentiation through the lower level's steps."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.tensors import as_tuple, each, like
from steepest.solvers.bilevel.hypergradient import Estimate, Hypergradient
from steepest.solvers.bilevel.levels import Levels, Pair


@dataclasses.dataclass(frozen=True)
class Unrolled(Hypergradient):
    """The exact gradient of f(x, y_K(x)), where y_K comes from the y at hand by K gradient steps of g(x, .), each a
    retraction, by autograd through all of them. Its memory grows with K.

    From a y at the minimum it is the series of `Neumann` with K terms. From elsewhere it errs by what the start is off
    as well, by about K (1 - t mu)^(K - 1) times that.

    Args:
        steps: K.
        step: t, length of each in units of the gradient.

    Han, Mishra, Jawanpuria and Takeda 2024 (2402.03883), AD.

    >>> from steepest.solvers import RHGD, Unrolled, bilevel
    >>> upper, lower = lambda x, y: (y - 1).square().sum(), lambda x, y: (y - x.exp()).square().sum()
    >>> bilevel(upper, lower, torch.ones(2), torch.ones(2), method=RHGD(Unrolled(20, 0.4))).success
    True
    """

    steps: int = 20
    step: float = 0.1

    unrolls: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1)
        check_range("step", self.step, open_low=True)

    def estimate(self, pair: Pair) -> Estimate:
        """Backwards through the steps: to x, and to the first y, where what is left of grad_y f is the residual."""
        levels = pair.levels
        x, start = (each(lambda t: t.detach().requires_grad_(), p) for p in (pair.x, pair.y))
        with torch.enable_grad():
            y = self.descend(levels, x, start, True)
            loss = levels.upper(x, y)
        levels.above.gradients += 1
        leaves = (*as_tuple(x), *as_tuple(start))
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
        else:
            grads = tuple(torch.zeros_like(t) for t in leaves)
        k = len(as_tuple(x))
        with torch.no_grad():
            left = pair.below.ravel(levels.manifold_y._pull(pair.below.frame, like(start, grads[k:])))
        end = levels.at(pair.x, each(Tensor.detach, y))
        residual, whole = float(left.norm()), float(end.pressure.norm())
        rate = (residual / whole) ** (1 / self.steps) if whole else 0.0
        return Estimate(like(x, grads[:k]), end.y, None, residual, (1 - rate) / self.step)

    def descend(self, levels: Levels, x: Any, y: Any, graph: bool) -> Any:
        """y after the steps, with their graph or without."""
        manifold = levels.manifold_y
        for _ in range(self.steps):
            levels.below.gradients += 1
            with torch.enable_grad():
                leaf = y if graph else each(lambda t: t.detach().requires_grad_(), y)
                loss = levels.lower(x, leaf)
                g = torch.autograd.grad(loss, as_tuple(leaf), create_graph=graph, materialize_grads=True)
            with torch.set_grad_enabled(graph):
                f = manifold.frame(y)
                y = manifold._move(f, each(lambda h: -self.step * h, manifold._pull(f, like(y, g))))
        return y

    @classmethod
    def examples(cls) -> list[Hypergradient]:
        """Few steps and many."""
        return [cls(5), cls(60)]
