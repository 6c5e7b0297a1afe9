"""Random subspaces that need no memory."""

from __future__ import annotations

import dataclasses
import zlib

import torch
from torch import Tensor

from steepest.linalg.basis import orthonormal_basis
from steepest.projectors.base import Moment, Projector, State


@dataclasses.dataclass(frozen=True)
class Gaussian(Projector):
    """Independent normal numbers of variance 1/r: P P^T is the identity in the mean, and lengths of rows are kept up to
    a factor 1 + O(1/sqrt(r)) (Johnson and Lindenstrauss 1984). Not orthonormal, unless asked for.

    Nothing is kept: the matrix is drawn anew at each step from a seed, the number of the epoch and the size, so that
    replicas agree and a run can be resumed. All matrices of one size in one batch have the same.

    Args:
        orthonormal: columns made orthonormal: a subspace drawn uniformly.
        seed: of all draws.

    Hao, Cao and Mou 2024, "FLORA" (2402.03293); Zhu et al. 2024, "APOLLO" (2412.05270), who seed each matrix apart.

    >>> optimizer = APOLLO(param_groups(torch.nn.Linear(8, 8)), projector=Gaussian(every=50, seed=1))
    """

    orthonormal: bool = False
    seed: int = 0

    def basis(self, x: Tensor, rank: int, state: State, at: Moment) -> Tensor:
        """That of the epoch."""
        p = gaussian((x.shape[-1], rank), zlib.crc32(f"{self.seed} {self.epoch(at)}".encode()), x)
        return orthonormal_basis(p) if self.orthonormal else p * rank**-0.5

    def before(self, x: Tensor, rank: int, state: State, at: Moment) -> State | None:
        """On to the next draw, which takes no state."""
        return {} if self.due(at) else None

    @classmethod
    def examples(cls) -> list[Projector]:
        """Normal numbers, and an orthonormal basis that changes every second step."""
        return [cls(), cls(every=2, spread=False, orthonormal=True)]


def random_basis(x: Tensor, rank: int) -> Tensor:
    """The same orthonormal start `(*b, n, rank)` for all x `(*b, m, n)` of a size."""
    return over_batch(orthonormal_basis(gaussian((x.shape[-1], rank), 0, x)), x)


def over_batch(start: Tensor, x: Tensor) -> Tensor:
    """A matrix for each element of x's batch, in memory of its own."""
    return start.expand(*x.shape[:-2], *start.shape).clone()


def gaussian(shape: tuple[int, int], seed: int, like: Tensor) -> Tensor:
    """Normal numbers from a seed and the shape alone, as a real matrix of the dtype and on the device of `like`."""
    generator = torch.Generator(like.device).manual_seed(zlib.crc32(f"{seed} {shape}".encode()))
    numbers = torch.randn(shape, generator=generator, dtype=like.real.dtype, device=like.device)
    return numbers.to(like.dtype)
