"""Shampoo: a matrix divided by roots of its row and column statistics."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.eigen import eigh
from steepest.transforms.base import Context, State, Transform, as_matrix


@dataclasses.dataclass(frozen=True)
class Precondition(Transform):
    """L^(-1/4) h R^(-1/4), with L the sum (or average) of h h^H and R that of h^H h, Hermitian where h is complex.

    Args:
        beta: 1 to sum the statistics, as published; below 1 to average them exponentially.
        eps: added to the statistics' diagonal, relative to the mean of it.
        every: the roots are computed anew at the first and then at every such step.
        max_side: the statistics of a longer side are kept as their diagonal alone.

    Gupta, Koren and Singer 2018 (1802.09568), algorithm 1. There L starts from eps times the identity; here eps is
    relative, so that the step does not depend on the gradient's unit.
    """

    beta: float = 1.0
    eps: float = 1e-6
    every: int = 1
    max_side: int = 2048

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0, 1)
        check_range("eps", self.eps)
        check_range("every", self.every, 1)

    def init(self, h: Tensor, ctx: Context) -> State:
        """Zero statistics; roots before their first computation."""
        *batch, m, n = as_matrix(h, ctx.ndim).shape
        state: State = {}
        for key, side in (("left", m), ("right", n)):
            full = side <= self.max_side
            zero = h.new_zeros((*batch, side, side)) if full else h.real.new_zeros((*batch, side))
            state |= {key: zero, f"{key}_root": zero.clone()}
        return state

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The preconditioned block."""
        x = as_matrix(h, ctx.ndim)
        for side, y in (("left", x), ("right", x.mH)):
            statistic, root = state[side], state[f"{side}_root"]
            gram = y @ y.mH if statistic.ndim == x.ndim else (y.conj() * y).real.sum(-1)
            statistic.mul_(self.beta).add_(gram, alpha=1 - self.beta if self.beta < 1 else 1)
            if (ctx.step - 1) % self.every == 0:
                root.copy_(self._inverse_root(statistic, x.ndim))
        return _times(state["right_root"], _times(state["left_root"], x).mH).mH.reshape(h.shape)

    def _inverse_root(self, statistic: Tensor, ndim: int) -> Tensor:
        """(S + eps mean(diag S) I)^(-1/4); the identity for a zero S. Eigenvalues below zero are rounding's: the
        statistic of a tall gradient has not full rank."""
        full = statistic.ndim == ndim
        mean = (statistic.diagonal(dim1=-2, dim2=-1).real if full else statistic).mean(-1, keepdim=True)
        shift = torch.where(mean > 0, self.eps * mean, 1)
        if not full:
            return (statistic + shift) ** -0.25
        w, v = eigh(statistic)
        return (v * (w.clamp_min(0) + shift).pow(-0.25).unsqueeze(-2)) @ v.mH

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published; averaged, with one long side; roots every third step."""
        return [cls(), cls(beta=0.9, max_side=2), cls(every=3)]


def _times(root: Tensor, x: Tensor) -> Tensor:
    return root @ x if root.ndim == x.ndim else root.unsqueeze(-1) * x
