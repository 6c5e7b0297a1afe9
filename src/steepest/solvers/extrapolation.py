"""Extrapolation of the iterates of another method."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg import double
from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import each
from steepest.solvers.base import Method, State
from steepest.solvers.problem import Iterate
from steepest.solvers.steepest_descent import SteepestDescent

MENDS = 2
"""Corrections of the tangent vector that the retraction is to take to a given point."""


def _plain() -> Method:
    return SteepestDescent(barzilai_borwein=False, memory=1)


@dataclasses.dataclass(frozen=True)
class Extrapolated(Method):
    """Another method, and from time to time a jump to where its iterates seem to be going: to the combination of them,
    with weights of sum one, whose gradients would cancel best (regularised nonlinear acceleration; of gradient descent
    on a quadratic function with as many iterates as dimensions, the minimum).

    The last iterates x_i and their gradients g_i are kept as tangent vectors at the current one, x: s_i, which the
    retraction takes from x to x_i, and the carried g_i. The weights are c = (R + |R| reg I)^-1 1, scaled to sum one,
    with R the Gram matrix of the gradients, and the jump is the retraction of z = sum c_i s_i, or of -z where z leads
    up: gradients cancel at saddles too, and from those the iterates come. It is made only if f is lower there, which
    costs one value.

    Args:
        inner: the method; of what it remembers only numbers survive a jump, the length of its step, say.
        memory: iterates that are combined beside the current one.
        regularization: of the weights, as a fraction of the norm of R.
        restart: False: a jump is tried after each step, from the last `memory` iterates, as Anderson's method does.
            True, the authors' way: after every `memory` steps, and what is kept is forgotten then.

    Han, Mishra, Jawanpuria and Gao 2022, "Riemannian accelerated gradient methods via extrapolation" (2208.06619), and
    their code. There the steps, of one length, are what should cancel; gradients do also where a line search makes the
    lengths differ, and are the same otherwise. They combine points by weighted averages along geodesics, one after the
    other; here they are combined in the tangent space at the last, where s_i is found by no logarithm but by correcting
    the projected difference of the points by the retraction twice. They jump without looking at f, and never away from
    where the gradients cancel. Scieur, d'Aspremont and Bach 2016, the flat case.

    >>> from steepest import minimize
    >>> from steepest.solvers import Extrapolated
    >>> d = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    >>> result = minimize(lambda x: (d * x * x).sum(), torch.ones_like(d), method=Extrapolated(memory=3))
    >>> result.success, result.iterations <= 20  # and 500 without
    (True, True)
    """

    inner: Method = dataclasses.field(default_factory=_plain)
    memory: int = 10
    regularization: float = 1e-8
    restart: bool = False

    def __post_init__(self) -> None:
        inner = Method.from_spec(self.inner)
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "order", max(1, inner.order))
        check_range("memory", self.memory, 1)
        check_range("regularization", self.regularization)

    def fault(self, manifold: Manifold, x: Any) -> str:
        """The inner method's."""
        return self.inner.fault(manifold, x)

    def init(self, at: Iterate) -> State:
        """Nothing kept."""
        return {"inner": self.inner.init(at), **_none(at)}

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """A step of the inner method, and where there is enough to go by, a jump."""
        to, inner = self.inner.step(at, {**state["inner"], "iteration": state["iteration"]})
        if to is at:
            return at, {**state, "inner": inner}
        s, g = _kept(at, to, state["s"], state["g"], self.memory)
        note = inner.get("note", {})
        if len(s) < (self.memory if self.restart else 1):
            return to, {"inner": inner, "s": s, "g": g, "note": note}
        z = _weights(torch.cat([g, to.gradient[None]]), self.regularization)[:-1] @ s
        z = -z if to.gradient @ z > 0 else z
        jump = to.move(z)
        if not (jump.value < to.value and jump.finite):
            return to, {"inner": inner, **(_none(to) if self.restart else {"s": s, "g": g}), "note": note}
        kept = _none(jump) if self.restart else _moved(to, jump, z, s, g, self.memory)
        return jump, {"inner": self._after(jump, inner), **kept, "note": {**note, "jump": float(z.norm())}}

    def _after(self, at: Iterate, inner: State) -> State:
        """The inner method's state at a point that it has not come to by itself."""
        return {**self.inner.init(at), **{k: v for k, v in inner.items() if isinstance(v, int | float)}}

    @classmethod
    def examples(cls) -> list[Method]:
        """Anderson's way, and the authors'."""
        return [cls(), cls(memory=5, restart=True)]


def _none(at: Iterate) -> State:
    none = at.gradient.new_zeros(0, at.size)
    return {"s": none, "g": none}


def _kept(at: Iterate, to: Iterate, s: Tensor, g: Tensor, memory: int) -> tuple[Tensor, Tensor]:
    """All s_i and g_i at the next iterate, with those of the last one."""
    d = _difference(to, at)
    return _shifted(at, to, d, torch.cat([s, torch.zeros_like(d)[None]]), torch.cat([g, at.gradient[None]]), memory)


def _moved(at: Iterate, to: Iterate, z: Tensor, s: Tensor, g: Tensor, memory: int) -> State:
    """All s_i and g_i after a jump along z, with those of where it began."""
    s, g = torch.cat([s, torch.zeros_like(z)[None]]), torch.cat([g, at.gradient[None]])
    s, g = _shifted(at, to, -at.carry(z, to), s, g, memory)
    return {"s": s, "g": g}


def _shifted(at: Iterate, to: Iterate, d: Tensor, s: Tensor, g: Tensor, memory: int) -> tuple[Tensor, Tensor]:
    s, g = at.carry(torch.cat([s[-memory:], g[-memory:]]), to).tensor_split(2)
    return s + d, g


def _difference(at: Iterate, goal: Iterate) -> Tensor:
    """z, `(n,)`, with `at.move(z)` near to the goal: its residual is of third order in their distance and higher, where
    the projected difference of the points has one of second order."""
    manifold = at.problem.manifold

    def projected(x: Any) -> Tensor:
        with torch.no_grad():
            return at.conform(at.ravel(manifold._coords(at.frame, each(torch.sub, goal.x, x))))

    z = projected(at.x)
    for _ in range(MENDS):
        z = z + projected(at.move(z).x)
    return z


def _weights(g: Tensor, regularization: float) -> Tensor:
    """c, `(m,)`, of sum one with |sum c_i g_i|^2 + regularization |R| |c|^2 least, R the Gram matrix of g `(m, n)`, in
    its 2-norm. By eigenvectors, so that gradients may depend on each other."""
    w, v = torch.linalg.eigh(double(g @ g.mT))
    w = (w / w[-1] + regularization).clamp_min(len(w) * torch.finfo(w.dtype).eps)
    c = v @ (v.sum(0) / w)
    return (c / c.sum()).to(g)
