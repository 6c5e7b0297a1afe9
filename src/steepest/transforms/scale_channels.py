"""APOLLO: the gradient itself, scaled as a chain in a random subspace would scale it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.projectors import Gaussian, Principal
from steepest.transforms.adam_scale import AdamScale
from steepest.transforms.base import State, Transform
from steepest.transforms.subspace import Projected, Subspace


@dataclasses.dataclass(frozen=True)
class ScaleChannels(Subspace):
    """s h, with s = |inner(h P)| / |h P| for each row along the projected side, or one for the whole matrix: the step
    has full rank, and only factors come from the subspace. See `Subspace` for the other arguments.

    Args:
        whole: one factor for the whole matrix.

    Zhu et al. 2024, "APOLLO: SGD-like memory, AdamW-level performance" (2412.05270), algorithm 1 ("channel-wise" and,
    with rank 1, "tensor-wise" as in APOLLO-Mini).
    """

    whole: bool = False

    def lifted(self, p: Projected, state: State) -> Tensor:
        """The scaled gradient."""
        return p.x * channel_factors(p, self.whole)

    @classmethod
    def examples(cls) -> list[Transform]:
        """APOLLO, APOLLO-Mini, and with a principal subspace."""
        mini = cls(AdamScale(), 1, Gaussian(every=2, spread=False), whole=True)
        return [cls(AdamScale(), 0.5, Gaussian()), mini, cls(AdamScale(), 1, Principal())]


def channel_factors(p: Projected, whole: bool = False) -> Tensor:
    """|step| / |low| of each row, `(*b, m, 1)`, or of the whole, `(*b, 1, 1)`; zero for a zero step."""
    after, before = (torch.linalg.vector_norm(t, dim=(-2, -1) if whole else -1, keepdim=True) for t in (p.step, p.low))
    return after / (before + 1e-8)
