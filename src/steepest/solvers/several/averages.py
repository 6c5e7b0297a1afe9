"""One direction of several gradients, whether they conflict or not."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.solvers.several.base import Aggregator, checked, preference


@dataclasses.dataclass(frozen=True)
class Mean(Aggregator):
    """The mean of the gradients, weighted by `preference`: descent on one function, which may raise some objectives.

    >>> from steepest.solvers import Mean
    >>> Mean()(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([0.5000, 1.5000])
    """

    preference: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "preference", checked(self.preference))

    def weights(self, gram: Tensor, seed: int = 0) -> Tensor:
        """The preference."""
        return preference(self.preference, gram).expand(gram.shape[:-1])

    @classmethod
    def examples(cls) -> list[Aggregator]:
        """With and without a preference."""
        return [cls(), cls((0.2, 0.5, 0.3))]


@dataclasses.dataclass(frozen=True)
class Sum(Aggregator):
    """The sum of the gradients.

    >>> from steepest.solvers import Sum
    >>> Sum()(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([1., 3.])
    """

    def weights(self, gram: Tensor, seed: int = 0) -> Tensor:
        """Ones."""
        return gram.new_ones(gram.shape[:-1])

    @classmethod
    def examples(cls) -> list[Aggregator]:
        """The only one."""
        return [cls()]


@dataclasses.dataclass(frozen=True)
class AlignedMTL(Aggregator):
    """The gradients after the change of J to the nearest matrix, up to scale, with orthogonal rows of one length.

    With J J^T = V diag(s) V^T: w = sqrt(min s) V diag(s)^(-1/2) V^T p, over the eigenvalues above 1e-13 of the largest,
    for the preference p.

    Senushkin, Patakin, Kuznetsov and Konushin 2023, "Independent component alignment for multi-task learning"
    (2305.19000), algorithm 1. torchjd's code takes the precision of torch's default dtype for its rank; here it is that
    of the float64 in which it computes.

    >>> from steepest.solvers import AlignedMTL
    >>> AlignedMTL()(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([0.5000, 0.5000])
    """

    preference: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "preference", checked(self.preference))

    def weights(self, gram: Tensor, seed: int = 0) -> Tensor:
        """The formula; for a Jacobian of zeros, the preference."""
        p = preference(self.preference, gram)
        s, v = torch.linalg.eigh(gram)
        kept = s > 1e-13 * s[..., -1:].clamp_min(torch.finfo(s.dtype).tiny)
        least = torch.where(kept, s, torch.inf).amin(-1, keepdim=True)
        roots = torch.where(kept, (least / s).clamp_min(0).sqrt(), 0)
        w = (v @ (roots * (v.mT @ p)).unsqueeze(-1)).squeeze(-1)
        return torch.where(kept.any(-1, keepdim=True), w, p)

    @classmethod
    def examples(cls) -> list[Aggregator]:
        """The default."""
        return [cls()]
