"""Particle swarm optimisation."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.geodesic import towards
from steepest.manifolds.implicit import ConvergenceWarning, ravel
from steepest.manifolds.tensors import as_tuple, each, like
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.problem import Iterate

MEND = 100
"""Steps after which the drift of the particles off the manifold is taken away."""

LEAP = 4
"""Times `spread` is the furthest that a particle flies in one step."""


@dataclasses.dataclass(frozen=True)
class ParticleSwarm(Method):
    """Many points that fly on, and are drawn to the best point that each has seen and to the best of all. It takes
    values alone, of any function, and looks far around where others would follow a slope into the next valley.

    With v the velocity of the particle at x, p its best point, g the best of all, in coordinates at x,

        v <- inertia v + cognitive r (p - x) + social r' (g - x),    x <- retract(x, v),

    where r and r' are random numbers in [0, 1], one for each coordinate, v is cut to 4 `spread`, and then carried to
    the new point. The function is computed at all particles at once by `torch.vmap`, or at one after the other where it
    is not made for that.

    Args:
        particles: how many.
        inertia, cognitive, social: as above.
        spread: how far from x0 the particles start on average; the first one starts at x0.
        log: p - x is the manifold's `log`, where it has an algorithm of its own for it and the points have one. False:
            the difference of the tensors (on a quotient, of what they stand for), brought into the tangent space, which
            leads there as well, and takes as many steps; `log` is an iteration on some manifolds (Stiefel), and slow.
        tolerance: the run ends, as a success, when half of the particles are within this distance of the best point.
            None: ten times the root of the precision. The `tolerance` of `minimize`, for norms of gradients, has no
            say.
        patience: steps without a better point, beyond rounding, after which the run ends.

    Kennedy and Eberhart 1995; Clerc and Kennedy 2002, for the three numbers. On manifolds Borckmans, Ishteva and Absil
    2010, "A modified particle swarm optimization algorithm for the best low multilinear rank approximation of
    higher-order tensors". Manopt and pymanopt draw one r for a whole particle, which confines each to the plane of its
    two targets, and lower the inertia with the number of iterations that are left, which a run need not know here.

    >>> from steepest import Sphere, minimize
    >>> a = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    >>> result = minimize(lambda x: x @ a @ x, torch.tensor([0.0, 0.6, 0.8]), Sphere(), "ParticleSwarm")
    >>> result.success, round(result.value, 4)
    (True, 1.0)
    """

    particles: int = 40
    inertia: float = 0.7298
    cognitive: float = 1.49618
    social: float = 1.49618
    spread: float = 1.0
    log: bool = False
    tolerance: float | None = None
    patience: int = 100

    order: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_range("particles", self.particles, 2)
        check_range("inertia", self.inertia, 0, 1, open_high=True)
        check_range("cognitive", self.cognitive)
        check_range("social", self.social)
        check_range("spread", self.spread, open_low=True)
        check_range("tolerance", self.tolerance or 0.0)
        check_range("patience", self.patience, 1)

    def init(self, at: Iterate) -> State:
        """Particles around x0, at rest."""
        z = at.random(at.problem.generator(0), self.particles)
        z = self.spread * z / torch.linalg.vector_norm(z, dim=-1).mean().clamp_min(1e-30)
        z[0] = 0
        start = each(lambda t: t.expand(len(z), *t.shape).contiguous(), at.x)
        x, _ = _flown(at, start, at.problem.manifold.frame(start), z)
        values = at.problem.values(x)
        return {"x": list(as_tuple(x)), "v": 0 * z, "best": list(as_tuple(x)), "values": values, "idle": 0}

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """All particles fly once."""
        if state["idle"] >= self.patience:
            raise Stop(f"no particle has found a better point in {self.patience} steps")
        x, best = like(at.x, state["x"]), like(at.x, state["best"])
        x, v, span = self._fly(at, x, best, state)
        if state["iteration"] % MEND == MEND - 1:
            x = at.problem.manifold.project(x)
        values = at.problem.values(x)
        better = torch.tensor([new < old for new, old in zip(values, state["values"], strict=True)], device=v.device)
        best = _where(better, x, best)
        values = [min(pair) for pair in zip(values, state["values"], strict=True)]
        before, leader = min(state["values"]), _leader(values)
        gain = before - values[leader] > torch.finfo(v.dtype).eps * abs(before)
        to = at
        if values[leader] < at.value:
            to = at.problem.at(each(lambda t: t[leader].clone(), best))
            to.__dict__["value"] = values[leader]  # it is known
        state = {**state, "x": list(as_tuple(x)), "v": v, "best": list(as_tuple(best)), "values": values}
        return to, {**state, "idle": 0 if gain else state["idle"] + 1, "note": {"size": span}}

    def _fly(self, at: Iterate, x: Any, best: Any, state: State) -> tuple[Any, Tensor, float]:
        """The particles and their velocities after a step, and the span before it."""
        leader = _leader(state["values"])
        goals = each(lambda t: torch.cat([t, t[leader].expand(t.shape)]), best)
        own, common = self._towards(at, x, goals).chunk(2)
        span = self._span(common)
        generator = at.problem.generator(1, state["iteration"])
        r = torch.rand(2, *own.shape, dtype=torch.float64, generator=generator, device=generator.device).to(own)
        f = at.problem.manifold.frame(x)
        v = self.inertia * state["v"] + self.cognitive * r[0] * own + self.social * r[1] * common
        v = _conform(at, f, at.unravel(v))
        v = v * (LEAP * self.spread / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(1e-30)).clamp_max(1)
        return *_flown(at, x, f, v), span

    def _towards(self, at: Iterate, x: Any, goals: Any) -> Tensor:
        """Coordinates at the particles x of what leads to the goals, of which there are two for each, `(2 k, n)`."""
        manifold = at.problem.manifold
        twice = each(lambda t: torch.cat([t, t]), x)
        to = manifold.frame(twice)
        plain = _conform(at, to, towards(manifold, twice, goals, 3))
        if not self.log or "log" not in manifold.closed:
            return plain
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            exact = _conform(at, to, manifold._coords(to, manifold.log(twice, goals)))
        return torch.where(exact.isfinite().all(-1, keepdim=True), exact, plain)

    def _span(self, common: Tensor) -> float:
        """How near half of the particles are to the best point; raises `Stop` where that is within the tolerance."""
        span = float(torch.linalg.vector_norm(common, dim=-1).median())
        tolerance = 10 * torch.finfo(common.dtype).eps ** 0.5 if self.tolerance is None else self.tolerance
        if span <= tolerance:
            raise Stop(f"half of the swarm is within {span:.2g} of the best, the tolerance is {tolerance:.2g}", True)
        return span

    @classmethod
    def examples(cls) -> list[Method]:
        """A small and quick one."""
        return [cls(particles=20, tolerance=0.01)]


def _leader(values: list[float]) -> int:
    return min(range(len(values)), key=values.__getitem__)


def _conform(at: Iterate, f: Any, h: Any) -> Tensor:
    """Coordinates at all particles, projected onto those of tangent vectors, `(k, n)`."""
    manifold = at.problem.manifold
    h = manifold._horizontal(f, manifold._conform(f, h))
    return ravel(as_tuple(h), tuple(b.ndim for b in at.blocks))


def _flown(at: Iterate, x: Any, f: Any, v: Tensor) -> tuple[Any, Tensor]:
    """The particles after a step v, and v carried there; one whose end is not finite stays, and has no velocity."""
    manifold = at.problem.manifold
    ends = manifold._move(f, at.unravel(v))
    fine = torch.stack([t.isfinite().reshape(len(t), -1).all(-1) for t in as_tuple(ends)]).all(0)
    ends = _where(fine, ends, x)
    h = at.unravel(torch.where(fine[:, None], v, 0))
    to = manifold.frame(ends)
    return ends, _conform(at, to, manifold._carry(f, to, h))


def _where(which: Tensor, x: Any, y: Any) -> Any:
    return each(lambda a, b: torch.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b), x, y)
