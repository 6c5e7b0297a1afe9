"""Newton's method with cubic regularisation, and Hessians that serve for several steps."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.cubic import cubic_step
from steepest.linalg.eigen import eigh
from steepest.linalg.precision import double
from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import as_tuple
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.line_search import rounding
from steepest.solvers.problem import Iterate

CHUNK = 128
"""Products with the Hessian in one call."""
DECREASE = 0.1
"""Share of the model's decrease for which a step is accepted."""
TRIALS = 20
"""Larger constants in one step."""


@dataclasses.dataclass(frozen=True)
class CubicNewton(Method):
    """Steps to the global minimum of g.h + h.H h / 2 + M |h|^3 / 6, with a Hessian H that is computed, and decomposed,
    at every `every`-th step alone.

    All products of H are one batched call. Its one decomposition serves for all steps and all M: a step more costs d^2
    operations for a manifold of dimension d, a step with a new Hessian d^3 and d products. Convergence remains
    superlinear for any `every`, of order (1 + every)^(1 / every) for a step. Negative curvature needs no care: the
    model has a global minimum for every H. That makes it the method for small and hard problems; for d in the thousands
    take `TrustRegion`.

    H lies where it was computed: gradients are carried there, and steps back, as the optimisers carry momentum. M is
    multiplied by four, which halves a long step, as long as the function falls by less than a tenth of what the model
    says, and halved after a step whose first attempt did.

    Args:
        every: steps for which a Hessian serves.
        smoothness: the first M. None: such that the first step is about as long as a unit vector, or as Newton's.
        max_size: the largest number of coordinates n. The Hessian takes 8 n d bytes.

    Nesterov and Polyak 2006; Doikov, Chayti and Jaggi 2023, "Second-order optimization with lazy Hessians"
    (2212.00781), algorithm 1; Cartis, Gould and Toint 2011, the search for M. The optimiser for training by the same
    idea is `steepest.LazyNewton`.

    >>> from steepest import SPD, minimize
    >>> from steepest.solvers import CubicNewton
    >>> c = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> method = CubicNewton(every=3)
    >>> result = minimize(lambda x: (c @ x).trace() - x.logdet(), torch.eye(2), SPD(), method, tolerance=1e-4)
    >>> (result.x @ c - torch.eye(2)).abs().max().item() < 1e-4
    True
    """

    every: int = 1
    smoothness: float | None = None
    max_size: int = 3000

    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_range("every", self.every, 1)
        if self.smoothness is not None:
            check_range("smoothness", self.smoothness, open_low=True)
        check_range("max_size", self.max_size, 1)

    def fault(self, manifold: Manifold, x: Any) -> str:
        """Too large for a dense Hessian."""
        with torch.no_grad():
            blocks = as_tuple(manifold._pull(manifold.frame(x), x))
        size = sum(b.numel() * (2 if b.is_complex() else 1) for b in blocks)
        if size <= self.max_size:
            return ""
        return (
            f"keeps a Hessian of {size} x {size} numbers, more than max_size = {self.max_size} allows; pass "
            f"max_size={size} if there is memory and time for it, or take TrustRegion, which keeps none"
        )

    def init(self, at: Iterate) -> State:
        """No Hessian, and the constant for which g alone makes a step of length one."""
        return {"smoothness": self.smoothness or 2 * at.norm, "age": self.every}

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """The cubic model's minimum, with M raised until the function falls."""
        if state["age"] >= self.every:
            state = {**state, **_decomposed(at), "age": 0}
        home = at if state["age"] == 0 else at.problem.at(_packed(state["point"]))
        w, v = state["values"], state["vectors"]
        c = double(at.carry(at.gradient, home)) @ v
        m, noise = state["smoothness"], 10 * rounding(at)
        for trial in range(TRIALS):
            h = cubic_step(w, c, w.new_tensor(m))
            z = home.carry((v @ h).to(at.dtype), at)
            to = at.move(z)
            model, length = torch.stack([c @ h + (w * h) @ h / 2, torch.linalg.vector_norm(h)]).tolist()
            decrease = -model - m * length**3 / 6
            if at.value - to.value + noise >= DECREASE * (decrease + noise) and to.finite:
                smoothness = m / 2 if trial == 0 else m
                note = {"step": length, "smoothness": m, "age": state["age"]}
                return to, {**state, "smoothness": smoothness, "age": state["age"] + 1, "note": note}
            m *= 4
        if state["age"]:
            return at, {**state, "age": self.every, "note": {}}
        raise Stop("no step decreases the function: rounding, or a Hessian that is not its Hessian")

    @classmethod
    def examples(cls) -> list[Method]:
        """A new Hessian for each step, and for each third."""
        return [cls(), cls(every=3, smoothness=1.0)]


def _decomposed(at: Iterate) -> State:
    """Eigenvalues `(d,)`, ascending, and eigenvectors `(n, d)` of the Hessian on the d-dimensional tangent space."""
    basis = _basis(at)
    rows = torch.cat([at.product(some) for some in basis.split(CHUNK)])
    hessian = double(rows) @ double(basis).mT
    if not hessian.isfinite().all():
        raise Stop("products with the Hessian are not finite")
    w, v = eigh((hessian + hessian.mT) / 2)
    return {"values": w, "vectors": double(basis).mT @ v, "point": list(as_tuple(at.x))}


def _basis(at: Iterate) -> Tensor:
    """Orthonormal rows `(d, n)` that span the coordinates that gradients can have."""
    eye = torch.eye(at.size, dtype=at.dtype, device=at.gradient.device)
    projector = double(at.conform(eye))
    rank = round(float(projector.diagonal().sum()))
    if rank == at.size:
        return eye
    return eigh((projector + projector.mT) / 2)[1][:, at.size - rank :].mT.to(eye)


def _packed(parts: list[Tensor]) -> Any:
    return tuple(parts) if len(parts) > 1 else parts[0]
