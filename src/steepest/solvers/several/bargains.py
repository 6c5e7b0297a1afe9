"""Directions that treat objectives alike by a principle of their own."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.solvers.several.base import Aggregator
from steepest.solvers.several.cone import least_norm


@dataclasses.dataclass(frozen=True)
class MGDA(Aggregator):
    """The shortest convex combination of the gradients: the direction in which the least decrease is greatest, among
    those of its length. It is zero exactly where no direction lowers all objectives (Pareto stationary).

    Desideri 2012, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization"; Fliege and Svaiter
    2000, "Steepest descent methods for multicriteria optimization". The program is solved exactly, where Sener and
    Koltun 2018 (1810.04650) and torchjd take steps of Frank and Wolfe.

    >>> from steepest.solvers import MGDA
    >>> MGDA()(torch.tensor([[2.0, 0.0], [-1.0, 1.0]]))
    tensor([0.2000, 0.6000])
    """

    def weights(self, gram: Tensor, seed: int = 0) -> Tensor:
        """The weights of the combination."""
        return least_norm(gram)

    @classmethod
    def examples(cls) -> list[Aggregator]:
        """The only one."""
        return [cls()]


@dataclasses.dataclass(frozen=True)
class IMTLG(Aggregator):
    """The combination with weights of sum one that has equal projections onto all gradients' directions.

    With d the gradients' lengths: w = G^+ d / sum(G^+ d). Weights may be negative; where their sum vanishes they are
    zero.

    Liu et al. 2021, "Towards impartial multi-task learning", in the form of Quinton and Rey 2024, appendix B.

    >>> from steepest.solvers import IMTLG
    >>> IMTLG()(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([0.7500, 0.7500])
    """

    def weights(self, gram: Tensor, seed: int = 0) -> Tensor:
        """The formula."""
        d = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        v = (torch.linalg.pinv(gram, rtol=1e-13, hermitian=True) @ d.unsqueeze(-1)).squeeze(-1)
        total = v.sum(-1, keepdim=True)
        return torch.where(total.abs() > 1e-12 * v.abs().amax(-1, keepdim=True), v / total, 0)

    @classmethod
    def examples(cls) -> list[Aggregator]:
        """The only one."""
        return [cls()]


@dataclasses.dataclass(frozen=True)
class NashMTL(Aggregator):
    """The Nash bargaining solution: G w = 1 / w, entry by entry, with w > 0.

    That is where w^T G w / 2 - sum log w is least: a convex function, minimised by damped Newton steps from the
    diagonal's solution. The direction's length is the root of the number of objectives, whatever the gradients' are.
    Where no direction lowers all objectives there is no solution, and the last of the steps counts. An objective with a
    gradient of zero has weight zero.

    Navon et al. 2022, "Multi-task learning as a bargaining game" (2202.01017), claim 3.1. Their code solves a sequence
    of approximations from the last step's weights, divides by the norm of G, and shortens to length one; this does not.

    >>> from steepest.solvers import NashMTL
    >>> NashMTL()(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([1., 1.])
    """

    def weights(self, gram: Tensor, seed: int = 0) -> Tensor:
        """Newton's method for a self-concordant function: steps of 1 / (1 + decrement)."""
        d = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        present = d > 0
        d = torch.where(present, d, 1)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        g = torch.where(present.unsqueeze(-1) & present.unsqueeze(-2), gram / (d.unsqueeze(-1) * d.unsqueeze(-2)), eye)
        w = torch.ones_like(d)
        for _ in range(100):
            slope = (g @ w.unsqueeze(-1)).squeeze(-1) - 1 / w
            step = torch.linalg.solve_ex(g + torch.diag_embed(w**-2), slope)[0]
            decrement = torch.linalg.vecdot(slope, step).clamp_min(0).sqrt().unsqueeze(-1)
            w = w - step / torch.where(decrement > 0.25, 1 + decrement, 1)
            if not (decrement > 1e-14).any():
                break
        return torch.where(present, w / d, 0)

    @classmethod
    def examples(cls) -> list[Aggregator]:
        """The only one."""
        return [cls()]
