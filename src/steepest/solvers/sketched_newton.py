"""Newton's method for equations, with a linear system that is solved by random sketches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.symmetric import sym
from steepest.manifolds.tensors import as_tuple, each, like
from steepest.solvers.base import State, Stop
from steepest.solvers.constrained import ConstrainedMethod, ConstrainedProblem
from steepest.solvers.problem import Iterate

SKETCHES = ("kaczmarz", "gaussian")
DECREASE = 1e-4
"""Of Armijo's condition."""
HALVINGS = 40
WEIGHTS = 30
"""Changes of the merit function's weights in one step, at most."""
FLOOR = 1e-3
"""Least curvature along the constraints, relative to the largest and to how far |grad L| has fallen."""


@dataclasses.dataclass(frozen=True)
class SketchedNewton(ConstrainedMethod):
    """Newton's method for the Lagrangian's gradient, in coordinates: with the Jacobian G of the constraints c,

        [B, G^T; G, 0] (p, q) = -(grad_x L, c),    x <- retract(x, t p),  lambda <- lambda + t q.

    B is the Hessian H of the Lagrangian with eigenvalues along the constraints, of H on the kernel of G, replaced by
    their size, and raised to a small multiple of the largest that goes to zero with grad L: H itself near a minimiser
    of second order.

    The system is solved inexactly, by projections onto a few of its equations at a time, or random combinations of
    them: with z = (p, q), K z = b, and a sketch S, z <- z + K S (S^T K^2 S)^+ S^T (b - K z). t is found by halving
    until the differentiable exact augmented Lagrangian

        L + eta_1/2 |c|^2 + eta_2/2 |G grad_x L|^2

    decreases; its minimisers, for eta_1 large and eta_2 small enough, are those of the problem. Where its slope along z
    is not at most -eta_2/2 |grad L|^2, sketching goes on to a smaller residual, with eta_1 doubled and eta_2 halved.

    K is formed once a step, from one batched call of products with the Hessian: a sketch that took its products from
    the function would take more in all. The projections never factor K; but B has been made by an eigendecomposition,
    so that this is a method for small problems, in which a factorisation of K would do as well. Constraints have to be
    independent where the method goes.

    Args:
        sketch: "kaczmarz", rows of K at random, or "gaussian", normal combinations of all.
        size: of a sketch. None: half of the equations.
        residual: relative, at which a step is tried first; at most the root of how far |grad L| has fallen.
        penalty, weight: the first eta_1 and eta_2.
        sweeps: how often a step may go over as many equations as there are.

    Hong, Na, Mahoney and Kolar 2023, "Constrained optimization via exact augmented Lagrangian and randomized iterative
    sketching" (2305.18379), on a manifold: gradients, Hessians and Jacobians are Riemannian, in a frame. Gower and
    Richtárik 2015 (1506.03296), sketch and project. Chosen here: least squares for the first multipliers, the residual
    as the measure of accuracy, and B, positive on the kernel of G. It was not compared with the authors' code.

    >>> from steepest import Sphere
    >>> from steepest.solvers import minimize_constrained
    >>> x0 = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    >>> result = minimize_constrained(lambda x: x[0], x0, Sphere(), lambda x: x.sum(), method="SketchedNewton")
    >>> result.x.numpy().round(3), round(result.equality_multipliers.item(), 3)
    (array([-0.816,  0.408,  0.408]), -0.333)
    """

    sketch: str = "kaczmarz"
    size: int | None = None
    residual: float = 0.1
    penalty: float = 1.0
    weight: float = 0.1
    sweeps: int = 1000

    def __post_init__(self) -> None:
        if self.sketch not in SKETCHES:
            raise ValueError(f"sketch: got {self.sketch!r}, expected one of {', '.join(SKETCHES)}")
        if self.size is not None:
            check_range("size", self.size, 1)
        check_range("residual", self.residual, 0, 1, open_low=True, open_high=True)
        check_range("penalty", self.penalty, open_low=True)
        check_range("weight", self.weight, open_low=True)
        check_range("sweeps", self.sweeps, 1)

    def fault(self, problem: ConstrainedProblem) -> str:
        """Inequalities."""
        if problem.given[1] is None:
            return ""
        return "is for equalities alone; with inequalities use AugmentedLagrangian()"

    def init(self, problem: ConstrainedProblem, x: Any, c: Tensor, d: Tensor) -> State:
        """Multipliers by least squares."""
        here = _Here(problem, x, torch.zeros_like(c))
        equality = -torch.linalg.pinv(here.jacobian.mT) @ here.at.gradient
        first = _Here(problem, x, equality).length
        return {"equality": equality, "inequality": d, "eta": (self.penalty, self.weight), "first": first}

    def step(self, problem: ConstrainedProblem, x: Any, state: State) -> tuple[Any, State]:
        """A direction by sketches, and Armijo's rule for the merit function."""
        here = _Here(problem, x, state["equality"])
        z, eta, sweeps = self._direction(here, state)
        p, q = z[: here.at.size], z[here.at.size :]
        start, slope = here.merit(eta), float(here.merit_gradient(eta) @ z)
        noise = 32 * torch.finfo(z.dtype).eps * max(abs(start), here.largest)
        t = 1.0
        for _ in range(HALVINGS):
            to = _Here(problem, here.at.move(t * p).x, here.equality + t * q)
            if to.merit(eta) <= start + DECREASE * t * slope + noise:
                note = {"step": t, "sweeps": sweeps, "eta": eta[0]}
                problem.inner += sweeps
                return to.at.x, {**state, "equality": to.equality, "eta": eta, "note": note}
            t /= 2
        raise Stop("no step decreases the augmented Lagrangian: rounding, or constraints that depend on each other")

    def _direction(self, here: _Here, state: State) -> tuple[Tensor, tuple[float, float], int]:
        """z, with the weights with which it descends, and the sweeps that it took."""
        if not (math.isfinite(here.length) and here.hessian.isfinite().all()):
            raise Stop("the gradient, the constraints' derivatives or products with the Hessian are not finite")
        fallen = min(here.length / (state["first"] or 1.0), 1.0)
        k, b = here.system(FLOOR * fallen)
        solver = _Projections(k, b, self.sketch, self.size or max(1, len(b) // 2))
        generator = here.at.problem.generator(state["iteration"], device=b.device)
        eta, small, sweeps = state["eta"], min(self.residual, math.sqrt(fallen)), 0
        for _ in range(WEIGHTS):
            sweeps += solver.run(generator, small * here.length, self.sweeps)
            if float(here.merit_gradient(eta) @ solver.z) <= -eta[1] / 2 * here.length**2:
                return solver.z, eta, sweeps
            eta, small = (2 * eta[0], eta[1] / 2), max(small / 4, 1e-10)
        raise Stop("no direction of descent: constraints that depend on each other")

    @classmethod
    def examples(cls) -> list[ConstrainedMethod]:
        """Both sketches."""
        return [cls(), cls("gaussian")]


class _Here:
    """A point and multipliers, with what is known there."""

    def __init__(self, problem: ConstrainedProblem, x: Any, equality: Tensor) -> None:
        self.problem, self.equality = problem, equality
        lagrangian = problem.lagrangian(equality, equality[:0])
        lagrangian.curvature = True
        self.at: Iterate = lagrangian.at(x)
        self.c, self.jacobian = _jacobian(problem, self.at)
        self._hessian: Tensor | None = None

    @property
    def length(self) -> float:
        """|grad L|, of both parts."""
        return math.hypot(self.at.norm, float(torch.linalg.vector_norm(self.c)))

    @property
    def largest(self) -> float:
        """A size of the Hessian."""
        return float(torch.linalg.matrix_norm(self.hessian, ord=1)) or 1.0

    @property
    def hessian(self) -> Tensor:
        """H, `(n, n)`."""
        if self._hessian is None:
            h = self.at.product(torch.eye(self.at.size, dtype=self.at.gradient.dtype, device=self.at.gradient.device))
            self._hessian = (h + h.mT) / 2
        return self._hessian

    @property
    def along(self) -> Tensor:
        """G grad_x L."""
        return self.jacobian @ self.at.gradient

    def system(self, floor: float) -> tuple[Tensor, Tensor]:
        """K and the right hand side."""
        n, m = self.at.size, len(self.c)
        k = self.hessian.new_zeros(n + m, n + m)
        k[:n, :n], k[n:, :n], k[:n, n:] = self._positive(floor), self.jacobian, self.jacobian.mT
        return k, -torch.cat([self.at.gradient, self.c])

    def _positive(self, floor: float) -> Tensor:
        """B: the Hessian with positive eigenvalues on the kernel of G, as far as vectors there conform."""
        _, s, rows = torch.linalg.svd(self.jacobian, full_matrices=False)
        rows = rows[s > s[:1] * 1e-12]
        eye = torch.eye(self.at.size, dtype=rows.dtype, device=rows.device)
        share, v = torch.linalg.eigh(sym(self.at.conform(eye) - rows.mT @ rows))
        along = v[:, share > 0.5]
        w, v = torch.linalg.eigh(sym(along.mT @ self.hessian @ along))
        v = along @ v
        size = w.abs()
        return self.hessian + (v * (torch.maximum(size, floor * size.max()) - w)) @ v.mT if len(w) else self.hessian

    def merit(self, eta: tuple[float, float]) -> float:
        """L + eta_1/2 |c|^2 + eta_2/2 |G grad_x L|^2; infinite where it is NaN."""
        value = self.at.value + eta[0] / 2 * float(self.c @ self.c)
        value += eta[1] / 2 * float(self.along.square().sum()) if math.isfinite(value) else math.inf
        return value if value == value else math.inf

    def merit_gradient(self, eta: tuple[float, float]) -> Tensor:
        """Its gradient in (x, lambda): of the second square H G^T w + Hess(<w, c>) grad_x L and G G^T w, where w is
        G grad_x L."""
        w, g = self.along, self.jacobian
        bent = self.problem.part(lambda x: w @ self.problem.equalities(x))
        bent.curvature = True
        turn = bent.at(self.at.x).product(self.at.gradient)
        in_x = self.at.gradient + eta[0] * g.mT @ self.c + eta[1] * (self.hessian @ (g.mT @ w) + turn)
        return torch.cat([in_x, self.c + eta[1] * g @ (g.mT @ w)])


def _jacobian(problem: ConstrainedProblem, at: Iterate) -> tuple[Tensor, Tensor]:
    """c `(m,)` and G `(m, n)`, whose rows are Riemannian gradients."""
    manifold = problem.manifold
    with torch.enable_grad():
        leaf = each(lambda t: t.detach().requires_grad_(), at.x)
        c = problem.equalities(leaf)
        eye = torch.eye(len(c), dtype=c.dtype, device=c.device)
        rows = torch.autograd.grad(c, as_tuple(leaf), eye, is_grads_batched=True, materialize_grads=True)
    with torch.no_grad():
        g = torch.vmap(lambda g: at.ravel(manifold._horizontal(at.frame, manifold._pull(at.frame, g))))(
            like(at.x, rows)
        )
    return c.detach(), g


class _Projections:
    """z, which starts at zero and approaches a solution of K z = b."""

    def __init__(self, k: Tensor, b: Tensor, kind: str, size: int) -> None:
        self.k, self.b, self.kind, self.size = k, b, kind, min(size, len(b))
        self.z = torch.zeros_like(b)

    def run(self, generator: torch.Generator, residual: float, sweeps: int) -> int:
        """Project until |b - K z| is small, checked after each sweep; and how many those were."""
        for sweep in range(sweeps):
            if float(torch.linalg.vector_norm(self.b - self.k @ self.z)) <= residual:
                return sweep
            for _ in range(math.ceil(len(self.b) / self.size)):
                self._project(*self._sketch(generator))
        return sweeps

    def _sketch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """S^T K and S^T b."""
        n, device = len(self.b), generator.device
        if self.kind == "kaczmarz":
            rows = torch.randperm(n, generator=generator, device=device)[: self.size]
            return self.k[rows], self.b[rows]
        s = torch.randn(self.size, n, generator=generator, dtype=torch.float64, device=device).to(self.k)
        return s @ self.k, s @ self.b

    def _project(self, a: Tensor, b: Tensor) -> None:
        """The z nearest to this one with A z = b, for rows that may depend on each other."""
        gram = a @ a.mT
        ridge = 8 * torch.finfo(a.dtype).eps * gram.diagonal().sum()
        gram.diagonal().add_(ridge)
        lower, info = torch.linalg.cholesky_ex(gram)
        if info == 0:
            self.z = self.z + a.mT @ torch.cholesky_solve((b - a @ self.z)[:, None], lower)[:, 0]
