"""Gradients without what conflicts with the others."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.solvers.several.base import Aggregator, checked, preference
from steepest.solvers.several.cone import nonnegative


@dataclasses.dataclass(frozen=True)
class UPGrad(Aggregator):
    """The mean of the gradients, each projected onto the cone of directions that raise no objective's decrease.

    The projection of g_i onto {d: J d >= 0} is J^T v for the v >= e_i of least v^T J J^T v. The result conflicts with
    no gradient, is linear in the length of each, and lies in their span: of the aggregators that Quinton and Rey
    compare the only one with all three.

    Args:
        preference: what each objective counts. None: the same, with sum one.

    Quinton and Rey 2024, "Jacobian descent for multi-objective optimization" (2406.16232), section 3.2 and proposition
    1. The programs are solved exactly; torchjd adds 1e-4 of the trace to the Gramian's diagonal.

    >>> from steepest.solvers import UPGrad
    >>> UPGrad()(torch.tensor([[2.0, 0.0], [-1.0, 1.0]]))
    tensor([0.5000, 1.0000])
    """

    preference: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "preference", checked(self.preference))

    def weights(self, gram: Tensor, seed: int = 0) -> Tensor:
        """v = u + z with z >= 0, for each row u of the diagonal matrix of preferences; then their sum."""
        return above(gram.unsqueeze(-3), torch.diag(preference(self.preference, gram))).sum(-2)

    @classmethod
    def examples(cls) -> list[Aggregator]:
        """With and without a preference."""
        return [cls(), cls((0.2, 0.5, 0.3))]


@dataclasses.dataclass(frozen=True)
class DualProj(Aggregator):
    """The mean of the gradients, projected onto the cone of directions that raise no objective's decrease.

    Lopez-Paz and Ranzato 2017, "Gradient episodic memory for continual learning" (1706.08840), equation 11; so named by
    Quinton and Rey 2024.

    >>> from steepest.solvers import DualProj
    >>> DualProj()(torch.tensor([[4.0, 0.0], [-1.0, 1.0], [-5.0, 1.0]])).numpy().round(4) + 0
    array([0.    , 0.6667], dtype=float32)
    """

    preference: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "preference", checked(self.preference))

    def weights(self, gram: Tensor, seed: int = 0) -> Tensor:
        """The v >= p of least v^T G v."""
        return above(gram, preference(self.preference, gram))

    @classmethod
    def examples(cls) -> list[Aggregator]:
        """The default."""
        return [cls()]


@dataclasses.dataclass(frozen=True)
class PCGrad(Aggregator):
    """The sum of the gradients, from each of which the part against another is taken, one other after the other.

    The others come in a random order, drawn anew for each gradient by `seed` and the seed of the call.

    Yu, Kumar, Gupta, Levine, Hausman and Finn 2020, "Gradient surgery for multi-task learning" (2001.06782), algorithm
    1.

    >>> from steepest.solvers import PCGrad
    >>> PCGrad()(torch.tensor([[2.0, 0.0], [-1.0, 1.0]]))
    tensor([1., 2.])
    """

    seed: int = 0

    def weights(self, gram: Tensor, seed: int = 0) -> Tensor:
        """Weights of each projected gradient, and their sum."""
        generator = torch.Generator().manual_seed((self.seed * 1000003 + seed) % 2**63)
        total = torch.zeros_like(gram[..., 0])
        for i in range(gram.shape[-1]):
            w = torch.zeros_like(total)
            w[..., i] = 1
            for j in torch.randperm(gram.shape[-1], generator=generator, device=generator.device).tolist():
                if j != i:
                    inner, square = torch.linalg.vecdot(gram[..., j, :], w), gram[..., j, j]
                    w[..., j] -= torch.where(square > 0, inner.clamp_max(0) / square, 0)
            total += w
        return total

    @classmethod
    def examples(cls) -> list[Aggregator]:
        """The default."""
        return [cls()]


def above(gram: Tensor, u: Tensor) -> Tensor:
    """The v >= u of least v^T G v, `(*b, m)`."""
    return u + nonnegative(gram, (gram @ u.unsqueeze(-1)).squeeze(-1))
