"""Shampoo: a matrix divided by roots of its row and column statistics."""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.inverse_root import inverse_root
from steepest.linalg.statistics import average_gram
from steepest.transforms.base import Context, State, Transform, as_matrix


@dataclasses.dataclass(frozen=True)
class Precondition(Transform):
    """L^-p h R^-p tr(L)^(2p - 1/2), with L the sum (or average) of h h^H and R that of h^H h, Hermitian where h is
    complex.

    With p = 1/4, as published, the trace has no part in it. With p = 1/2 it is Shampoo^2: L (x) R / tr(L) is one step
    of power iteration from the identity towards the Kronecker product that is nearest to the covariance of the
    gradient, where p = 1/4 takes the root of it.

    Args:
        beta: 1 to sum the statistics, as published; below 1 to average them exponentially.
        eps: added to the statistics' diagonal, relative to the mean of it.
        every: the roots are computed anew at every such step.
        max_side: the statistics of a longer side are kept as their diagonal alone.
        power: p.
        early: they are computed at each of the first steps up to this one as well, where statistics change most.
        spread: for points that are too large for a batch at different steps, so that no step takes much longer than the
            others.
        debias: divide averages by 1 - beta^t, their weight so far.

    Where a decomposition fails, as LAPACK's may, the root stays what it was, and a RuntimeWarning says so; before the
    first it is the identity.

    Gupta, Koren and Singer 2018 (1802.09568), algorithm 1. There L starts from eps times the identity; here eps is
    relative, so that the step does not depend on the gradient's unit. Morwani et al. 2024 (2406.17748) for p = 1/2,
    section 3.
    """

    beta: float = 1.0
    eps: float = 1e-6
    every: int = 1
    max_side: int = 2048
    power: float = 0.25
    early: int = 1
    spread: bool = True
    debias: bool = False

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0, 1)
        check_range("eps", self.eps)
        check_range("every", self.every, 1)
        check_range("power", self.power, 0, 1, open_low=True)
        check_range("early", self.early, 1)
        if self.debias and self.beta == 1:
            raise ValueError("debias: there is nothing to correct in a sum, with beta = 1; choose a beta below 1")

    def init(self, h: Tensor, ctx: Context) -> State:
        """Zero statistics; the identity for the roots."""
        *batch, m, n = as_matrix(h, ctx.ndim).shape
        state: State = {}
        for key, side in (("left", m), ("right", n)):
            if side <= self.max_side:
                statistic = h.new_zeros((*batch, side, side))
                root = statistic + torch.eye(side, dtype=h.dtype, device=h.device)
            else:
                statistic = h.real.new_zeros((*batch, side))
                root = torch.ones_like(statistic)
            state |= {key: statistic, f"{key}_root": root}
        return state

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The preconditioned block."""
        x = as_matrix(h, ctx.ndim)
        for side, y in (("left", x), ("right", x.mH)):
            statistic, root = average_gram(state[side], y, self.beta), state[f"{side}_root"]
            if is_due(ctx, self.every, self.early, self.spread):
                root.copy_(self._root(statistic, root, ctx, full=root.ndim == x.ndim))
        return _times(state["right_root"], _times(state["left_root"], x).mH).mH.reshape(h.shape)

    def _root(self, statistic: Tensor, old: Tensor, ctx: Context, *, full: bool) -> Tensor:
        """S^-p tr(S)^(p - 1/4), S with eps on its diagonal; the identity for a zero S."""
        diagonal = statistic.diagonal(dim1=-2, dim2=-1).real if full else statistic
        weight = 1 - self.beta**ctx.step if self.debias else 1.0
        trace = diagonal.sum(-1, keepdim=True) / weight
        factor = torch.where(trace > 0, trace, 1) ** (self.power - 0.25) * weight**self.power
        if not full:
            mean = statistic.mean(-1, keepdim=True)
            return factor * (statistic + torch.where(mean > 0, self.eps * mean, 1)) ** -self.power
        try:
            return factor.unsqueeze(-1) * inverse_root(statistic, self.power, self.eps)
        except torch.linalg.LinAlgError as error:
            warnings.warn(f"no root of a statistic was found, the old one stays: {error}", RuntimeWarning, stacklevel=2)
            return old

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published; averaged, with one long side; roots every third step; Shampoo^2."""
        return [
            cls(),
            cls(beta=0.9, max_side=2),
            cls(every=3, early=2),
            cls(beta=0.9, power=0.5, debias=True),
        ]


def is_due(ctx: Context, every: int, early: int = 1, spread: bool = True) -> bool:
    """Whether periodic work falls on this step: on the first ones up to `early`, and then on every such one."""
    phase = ctx.phase if spread else 0
    return bool(ctx.step <= early or (ctx.step - 1 + phase) % every == 0)


def _times(root: Tensor, x: Tensor) -> Tensor:
    return root @ x if root.ndim == x.ndim else root.unsqueeze(-1) * x
