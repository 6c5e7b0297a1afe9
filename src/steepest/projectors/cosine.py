"""Columns of the discrete cosine transform."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.linalg.dct import dct, dct_matrix
from steepest.projectors.base import Moment, Projector, State


@dataclasses.dataclass(frozen=True)
class Cosine(Projector):
    """The r columns of the discrete cosine transform along which the matrix is largest, by sums of absolute values: no
    decomposition, one basis for all matrices of a size, and r numbers of state.

    Args:
        order: of the norm by which columns are chosen, 1 or 2; with 2 what is left out is smallest.

    Modoranu, Safaryan, Schultheis, Ryabinin, Chumachenko and Alistarh 2025, "FFT-based dynamic subspace selection"
    (2505.17967), algorithm 1.

    >>> optimizer = DCTAdamW(param_groups(torch.nn.Linear(8, 8)), projector=Cosine(every=10))
    """

    every: int = 1
    order: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2):
            raise ValueError(f"order: got {self.order!r}, expected 1 or 2")

    def init(self, x: Tensor, rank: int) -> State:
        """The slowest waves."""
        return {"columns": torch.arange(rank, device=x.device).expand(*x.shape[:-2], rank).clone()}

    def basis(self, x: Tensor, rank: int, state: State, at: Moment) -> Tensor:
        """The chosen columns."""
        return dct_matrix(x.shape[-1], x).T[state["columns"]].mT

    def before(self, x: Tensor, rank: int, state: State, at: Moment) -> State | None:
        """The columns of x that are largest now, in the order of their numbers."""
        if at.step > 1 and not self.due(at):
            return None
        entries = dct(x).abs()
        sizes = (entries if self.order == 1 else entries.square()).sum(-2)
        return {"columns": sizes.topk(rank, sorted=False).indices.sort().values}

    @classmethod
    def examples(cls) -> list[Projector]:
        """Chosen at every step, and at every third by squares."""
        return [cls(), cls(every=3, order=2)]
