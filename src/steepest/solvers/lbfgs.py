"""The quasi-Newton method with limited memory."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.precision import double
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.line_search import LineSearch, Wolfe
from steepest.solvers.problem import Iterate


@dataclasses.dataclass(frozen=True)
class LBFGS(Method):
    """Broyden, Fletcher, Goldfarb and Shanno's method from the last `memory` pairs of step and change of the gradient.

    All pairs are carried to the new point, in one batched call, and the product of the inverse with the gradient is
    formed from their Gram matrices (the compact form): three products of the memory with vectors instead of a loop over
    it. Pairs without positive curvature there are left out.

    Args:
        memory: pairs that are kept.
        line_search: how far to go; one with slopes keeps the curvature of new pairs positive.

    Liu and Nocedal 1989; Byrd, Nocedal and Schnabel 1994, theorem 2.2, the compact form; Huang, Gallivan and Absil
    2015, on manifolds.

    >>> from steepest import SPD, minimize
    >>> c = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> result = minimize(lambda x: (c @ x).trace() - x.logdet(), torch.eye(2), SPD(), "LBFGS", tolerance=1e-4)
    >>> (result.x @ c - torch.eye(2)).abs().max().item() < 1e-3
    True
    """

    memory: int = 10
    line_search: LineSearch = dataclasses.field(default_factory=Wolfe)

    def __post_init__(self) -> None:
        check_range("memory", self.memory, 1)
        object.__setattr__(self, "line_search", LineSearch.from_spec(self.line_search))

    def init(self, at: Iterate) -> State:
        """No pairs."""
        none = at.gradient.new_zeros(0, at.size)
        return {"s": none, "y": none}

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """A line search along -B g, and one pair more."""
        s, y, g = state["s"], state["y"], at.gradient
        p = -_inverse(s, y, g)
        slope = float(g @ p)
        if len(s) and not slope < 0:
            return at, self.init(at)
        first = 1.0 if len(s) else 1 / max(at.norm, 1.0)
        found = self.line_search.search(at, p, slope, first)
        if found is None:
            if len(s) == 0:
                raise Stop("no step decreases the function: rounding, or a gradient that is not its gradient")
            return at, self.init(at)
        t, to = found
        pairs = at.carry(torch.cat([s, (t * p)[None], y, g[None]]), to)
        s, rest = pairs.split([len(s) + 1, len(y) + 1])
        y = torch.cat([rest[:-1], (to.gradient - rest[-1])[None]])
        good = _curvature(s, y)
        return to, {"s": s[good][-self.memory :], "y": y[good][-self.memory :], "note": {"step": t}}

    @classmethod
    def examples(cls) -> list[Method]:
        """Long and short memory."""
        return [cls(), cls(memory=1)]


def _curvature(s: Tensor, y: Tensor) -> Tensor:
    """Which pairs have positive curvature, beyond rounding."""
    yy = torch.linalg.vecdot(y, y)
    return (torch.linalg.vecdot(s, y) > 10 * torch.finfo(s.dtype).eps * yy.sqrt() * s.norm(dim=-1)) & (yy > 0)


def _inverse(s: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """B g, with B = c I + [S, c Y] M [S, c Y]^T and c = s.y / y.y of the last pair (Byrd et al. 1994, theorem 2.2)."""
    if not len(s):
        return g
    gram = double(torch.cat([s, y]) @ torch.cat([y, g[None]]).mT)  # [S Y^T, S g; Y Y^T, Y g]
    k = len(s)
    sy, sg, yy, yg = gram[:k, :k], gram[:k, k], gram[k:, :k], gram[k:, k]
    c = sy[-1, -1] / yy[-1, -1]
    r = sy.triu()
    a = torch.linalg.solve_triangular(r, sg[:, None], upper=True)
    inner = sy.diagonal()[:, None] * a + c * (yy @ a) - c * yg[:, None]
    b = torch.linalg.solve_triangular(r.mT, inner, upper=False)
    return c.to(g) * g + s.mT @ b[:, 0].to(g) - c.to(g) * (y.mT @ a[:, 0].to(g))
