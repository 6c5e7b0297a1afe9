"""A subspace that is corrected to agree with the momentum."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.basis import orthonormal_basis
from steepest.projectors.base import Moment, Projector, State
from steepest.projectors.gaussian import gaussian, over_batch
from steepest.projectors.principal import Principal


@dataclasses.dataclass(frozen=True)
class Correlated(Projector):
    """Correlation-aware projection: every so often one gradient step on P for the product of what the projection leaves
    out and of how little the lifted momentum points along the gradient,

        mean((x P P^H - x)^2) (1 - mean_i cos((M P^H)_i, x_i)),

    M the momentum in the subspace, i the rows; and at each `anew`-th of these moves P from the gradient itself, by one
    power iteration from the old P and a small SVD.

    Args:
        every: steps between moves.
        lr: of the gradient step, whose gradient is cut to norm one.
        anew: moves from one computation from scratch to the next.

    Xiao et al. 2024, "COAP" (2412.00071), equations 5 and 6. Their code takes the cosines along the columns where the
    matrix is wide; here they are along its longer side's vectors, so that a transposed matrix goes the transposed way.

    >>> optimizer = COAP(param_groups(torch.nn.Linear(8, 8)), projector=Correlated(every=16))
    """

    every: int = 32
    lr: float = 0.1
    anew: int = 5

    needs_momentum: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("lr", self.lr)
        check_range("anew", self.anew, 1)

    @property
    def orthonormal(self) -> bool:
        """Only where it has been computed from scratch last."""
        return False

    def init(self, x: Tensor, rank: int) -> State:
        """What the first power iteration starts from."""
        return {"basis": over_batch(gaussian((x.shape[-1], rank), 0, x), x)}

    def basis(self, x: Tensor, rank: int, state: State, at: Moment) -> Tensor:
        """Where it is."""
        return state["basis"]

    def before(self, x: Tensor, rank: int, state: State, at: Moment) -> State | None:
        """The step, or the computation from scratch, when it is due."""
        if at.step > 1 and not self.due(at):
            return None
        if at.step == 1 or at.momentum is None or self.epoch(at) % self.anew == 0:
            return Principal().before(orthonormal_basis(x @ state["basis"]).mH @ x, rank, state, Moment(1))
        p = state["basis"]
        g = self.gradient(x, p, at.momentum)
        norm = torch.linalg.vector_norm(g, dim=(-2, -1), keepdim=True)
        return {"basis": p - self.lr * g / norm.clamp_min(1)}

    @staticmethod
    def gradient(x: Tensor, p: Tensor, momentum: Tensor) -> Tensor:
        """Of the product in P; what is lifted has m n entries, and only its products are needed."""
        low, gram = x @ p, p.mH @ p
        y, inner = x.mH @ low, low.mH @ low
        a, b = (t.clamp_min(1e-16).sqrt() for t in (_rows(momentum, momentum @ gram), _rows(x, x)))
        cosine = _rows(momentum, low) / (a * b)
        of_cosine = x.mH @ (momentum / (a * b)) - p @ ((momentum * (cosine / a.square())).mH @ momentum)
        left_out = _rows(x, x).sum(-2, keepdim=True) + _rows(inner, gram).sum(-2, keepdim=True)
        error = left_out - 2 * _rows(low, low).sum(-2, keepdim=True)
        of_error = 2 * (y @ gram + p @ inner - 2 * y)
        product = of_error * (1 - cosine.mean(-2, keepdim=True)) - error.clamp_min(0) * of_cosine / x.shape[-2]
        return product / (x.shape[-2] * x.shape[-1])

    @classmethod
    def examples(cls) -> list[Projector]:
        """As published, and at every second step."""
        return [cls(), cls(every=2, spread=False, anew=2)]


def _rows(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows, `(*b, m, 1)`."""
    return (a.conj() * b).real.sum(-1, keepdim=True)
