"""The leading singular vectors of a gradient."""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor

from steepest.linalg.basis import orthonormal_basis
from steepest.linalg.eigen import eigh
from steepest.linalg.precision import double
from steepest.projectors.base import Moment, Projector, State
from steepest.projectors.gaussian import random_basis


@dataclasses.dataclass(frozen=True)
class Principal(Projector):
    """The r leading right singular vectors of the gradient at hand, exactly: the subspace that holds most of it.

    From the eigenvectors of a Gram matrix of the shorter side in float64, which is several times cheaper than an SVD,
    and still costs hundreds of ordinary steps: see `Power` for one that does not show. Where the decomposition fails,
    as LAPACK's may, the subspace stays where it was, and a RuntimeWarning says so.

    Zhao, Zhang, Chen, Wang, Anandkumar and Tian 2024, "GaLore" (2403.03507), section 3.

    >>> optimizer = GaLore(param_groups(torch.nn.Linear(8, 8)), projector=Principal(every=100))
    """

    def init(self, x: Tensor, rank: int) -> State:
        """A random subspace, which stays only if the first decomposition fails."""
        return {"basis": random_basis(x, rank)}

    def basis(self, x: Tensor, rank: int, state: State, at: Moment) -> Tensor:
        """The one that was found last."""
        return state["basis"]

    def before(self, x: Tensor, rank: int, state: State, at: Moment) -> State | None:
        """Singular vectors of x, when they are due."""
        if at.step > 1 and not self.due(at):
            return None
        try:
            return {"basis": leading_vectors(x, rank)}
        except torch.linalg.LinAlgError as error:
            warnings.warn(
                f"no singular vectors of a gradient were found, the old ones stay: {error}", RuntimeWarning, 2
            )
            return None

    @classmethod
    def examples(cls) -> list[Projector]:
        """As published, and anew every second step."""
        return [cls(), cls(every=2, spread=False)]


def leading_vectors(x: Tensor, rank: int) -> Tensor:
    """The `rank` leading right singular vectors `(*b, n, rank)` of x `(*b, m, n)`, in tensors of their own."""
    wide = double(x)
    m, n = x.shape[-2:]
    if m >= n:
        return eigh(wide.mH @ wide)[1][..., -rank:].flip(-1).to(x.dtype)
    left = eigh(wide @ wide.mH)[1][..., -rank:].flip(-1)
    return orthonormal_basis(wide.mH @ left).to(x.dtype)
