"""Sets of matrices that products do not leave, each stored by the numbers that tell its members apart."""

from __future__ import annotations

import abc
import dataclasses
from functools import cache
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.spec import Spec


@dataclasses.dataclass(frozen=True)
class Structure(Spec, abc.ABC):
    """A set of n x n matrices that is closed under products and linear combinations; a member is stored as a tensor k
    `(*b, ...)` of its own layout, in which sums and multiples are those of the matrices.

    `project` and `gram` turn a symmetric matrix S into the member M that descends along it: the gradient, in the
    coordinates of the set, of a function whose gradient is S. So where the set holds an entry but not its mirror image,
    M has twice that of S.

    Lin et al. 2024 (2312.05705).
    """

    @abc.abstractmethod
    def identity(self, n: int, like: Tensor) -> Tensor:
        """The identity, of the dtype and on the device of `like`."""

    @abc.abstractmethod
    def dense(self, k: Tensor, n: int) -> Tensor:
        """The matrix `(*b, n, n)`."""

    @abc.abstractmethod
    def times(self, k: Tensor, x: Tensor) -> Tensor:
        """K x for x `(*b, n, r)`."""

    @abc.abstractmethod
    def transposed_times(self, k: Tensor, x: Tensor) -> Tensor:
        """K^T x for x `(*b, n, r)`."""

    @abc.abstractmethod
    def product(self, k: Tensor, m: Tensor, n: int) -> Tensor:
        """K M."""

    @abc.abstractmethod
    def gram(self, x: Tensor) -> Tensor:
        """The projection of x x^T for x `(*b, n, r)`."""

    @abc.abstractmethod
    def square(self, k: Tensor, n: int) -> Tensor:
        """The projection of K^T K."""

    @abc.abstractmethod
    def mean_diagonal(self, k: Tensor, n: int) -> Tensor:
        """tr(K) / n, `(*b,)`."""

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[Structure]:
        """Instances that tests run on."""


@dataclasses.dataclass(frozen=True)
class Diagonal(Structure):
    """Diagonal matrices, n numbers.

    >>> singd = SINGD(torch.nn.Linear(4, 2), structure=Diagonal())
    """

    def identity(self, n: int, like: Tensor) -> Tensor:
        """Ones `(n,)`."""
        return like.new_ones(n)

    def dense(self, k: Tensor, n: int) -> Tensor:
        """As a matrix."""
        return torch.diag_embed(k)

    def times(self, k: Tensor, x: Tensor) -> Tensor:
        """Rows of x times numbers."""
        return k.unsqueeze(-1) * x

    def transposed_times(self, k: Tensor, x: Tensor) -> Tensor:
        """The same."""
        return k.unsqueeze(-1) * x

    def product(self, k: Tensor, m: Tensor, n: int) -> Tensor:
        """Entry by entry."""
        return k * m

    def gram(self, x: Tensor) -> Tensor:
        """Squared norms of rows."""
        return x.square().sum(-1)

    def square(self, k: Tensor, n: int) -> Tensor:
        """Squares."""
        return k.square()

    def mean_diagonal(self, k: Tensor, n: int) -> Tensor:
        """The mean."""
        return k.mean(-1)

    @classmethod
    def examples(cls) -> list[Structure]:
        """The one there is."""
        return [cls()]


@dataclasses.dataclass(frozen=True)
class BlockDiagonal(Structure):
    """Square blocks along the diagonal, `(ceil(n / size), size, size)`; what the last one has too much stays zero.

    >>> singd = SINGD(torch.nn.Linear(4, 2), structure=BlockDiagonal(3))
    """

    size: int = 32

    def __post_init__(self) -> None:
        check_range("size", self.size, 1)

    def identity(self, n: int, like: Tensor) -> Tensor:
        """Identities, but for what is too much."""
        whole = like.new_zeros(self._count(n) * self.size)
        whole[:n] = 1
        return torch.diag_embed(whole.unflatten(0, (-1, self.size)))

    def dense(self, k: Tensor, n: int) -> Tensor:
        """As a matrix."""
        return self.times(k, torch.eye(n, dtype=k.dtype, device=k.device).expand(*k.shape[:-3], n, n))

    def times(self, k: Tensor, x: Tensor) -> Tensor:
        """Block by block."""
        return (k @ self._split(x)).flatten(-3, -2)[..., : x.shape[-2], :]

    def transposed_times(self, k: Tensor, x: Tensor) -> Tensor:
        """Block by block."""
        return self.times(k.mT, x)

    def product(self, k: Tensor, m: Tensor, n: int) -> Tensor:
        """Block by block."""
        return k @ m

    def gram(self, x: Tensor) -> Tensor:
        """Blocks of x x^T."""
        parts = self._split(x)
        return parts @ parts.mT

    def square(self, k: Tensor, n: int) -> Tensor:
        """Block by block."""
        return k.mT @ k

    def mean_diagonal(self, k: Tensor, n: int) -> Tensor:
        """Over all blocks."""
        return k.diagonal(dim1=-2, dim2=-1).sum((-2, -1)) / n

    def _count(self, n: int) -> int:
        return -(-n // self.size)

    def _split(self, x: Tensor) -> Tensor:
        n = x.shape[-2]
        padded = torch.nn.functional.pad(x, (0, 0, 0, self._count(n) * self.size - n))
        return padded.unflatten(-2, (-1, self.size))

    @classmethod
    def examples(cls) -> list[Structure]:
        """Blocks that fit, and such that do not."""
        return [cls(2), cls(3)]


class Stored(Structure):
    """A structure that computes with whole matrices and stores less: `_write` of a member of the set, `dense` back."""

    @abc.abstractmethod
    def _write(self, x: Tensor) -> Tensor:
        """The numbers of a matrix that is in the set."""

    @abc.abstractmethod
    def _project(self, s: Tensor) -> Tensor:
        """The projection of a symmetric matrix."""

    def identity(self, n: int, like: Tensor) -> Tensor:
        """The numbers of the identity."""
        return self._write(torch.eye(n, dtype=like.dtype, device=like.device))

    def times(self, k: Tensor, x: Tensor) -> Tensor:
        """By the matrix."""
        return self.dense(k, x.shape[-2]) @ x

    def transposed_times(self, k: Tensor, x: Tensor) -> Tensor:
        """By the matrix."""
        return self.dense(k, x.shape[-2]).mT @ x

    def product(self, k: Tensor, m: Tensor, n: int) -> Tensor:
        """By the matrices."""
        return self._write(self.dense(k, n) @ self.dense(m, n))

    def gram(self, x: Tensor) -> Tensor:
        """By the matrix."""
        return self._project(x @ x.mT)

    def square(self, k: Tensor, n: int) -> Tensor:
        """By the matrix."""
        x = self.dense(k, n)
        return self._project(x.mT @ x)

    def mean_diagonal(self, k: Tensor, n: int) -> Tensor:
        """Of the matrix."""
        return self.dense(k, n).diagonal(dim1=-2, dim2=-1).mean(-1)


@dataclasses.dataclass(frozen=True)
class Dense(Stored):
    """All matrices, n^2 numbers: with it SINGD is INGD.

    >>> ingd = SINGD(torch.nn.Linear(4, 2), structure=Dense())
    """

    def dense(self, k: Tensor, n: int) -> Tensor:
        """Itself."""
        return k

    def _write(self, x: Tensor) -> Tensor:
        return x

    def _project(self, s: Tensor) -> Tensor:
        return s

    @classmethod
    def examples(cls) -> list[Structure]:
        """The one there is."""
        return [cls()]


class Packed(Stored):
    """Matrices that are zero outside of a pattern, stored as what the pattern lets through."""

    @abc.abstractmethod
    def _pattern(self, n: int) -> Tensor:
        """Entries that need not be zero, `(n, n)`, of booleans."""

    def dense(self, k: Tensor, n: int) -> Tensor:
        """Zero elsewhere."""
        x = k.new_zeros(*k.shape[:-1], n * n)
        x[..., self._index(n, k.device)] = k
        return x.unflatten(-1, (n, n))

    def _write(self, x: Tensor) -> Tensor:
        return x.flatten(-2)[..., self._index(x.shape[-1], x.device)]

    def _project(self, s: Tensor) -> Tensor:
        pattern = self._pattern(s.shape[-1]).to(s.device)
        return self._write(torch.where(pattern & ~pattern.mT, 2 * s, s))

    def _index(self, n: int, device: Any) -> Tensor:
        return _index(self, n, device)


@cache
def _index(structure: Packed, n: int, device: Any) -> Tensor:
    """Places of the pattern's entries in the flattened matrix."""
    return structure._pattern(n).flatten().nonzero()[:, 0].to(device)


@dataclasses.dataclass(frozen=True)
class Triangular(Packed):
    """Lower, or upper, triangular matrices, n (n + 1) / 2 numbers.

    >>> singd = SINGD(torch.nn.Linear(4, 2), structure=Triangular(upper=True))
    """

    upper: bool = False

    def _pattern(self, n: int) -> Tensor:
        ones = torch.ones(n, n, dtype=torch.bool)
        return ones.triu() if self.upper else ones.tril()

    @classmethod
    def examples(cls) -> list[Structure]:
        """Both."""
        return [cls(), cls(upper=True)]


@dataclasses.dataclass(frozen=True)
class Hierarchical(Packed):
    """A dense block at the top left and one at the bottom right, a diagonal between them, and all of the entries that
    connect these three to the right of the one and to the left of the other:

        [A  B1 B2]
        [0  C  0 ]    A: top x top, C: diagonal, E: bottom x bottom.
        [0  D  E ]

    With bottom=0 and top=1 it is the arrow with a row. Where n is too small, the diagonal goes first, then the bottom.

    >>> singd = SINGD(torch.nn.Linear(4, 2), structure=Hierarchical(1, 1))
    """

    top: int = 15
    bottom: int = 15

    def __post_init__(self) -> None:
        check_range("top", self.top)
        check_range("bottom", self.bottom)

    def _pattern(self, n: int) -> Tensor:
        pattern = torch.eye(n, dtype=torch.bool)
        pattern[: self.top] = True
        pattern[max(self.top, n - self.bottom) :, min(self.top, n) :] = True
        return pattern

    @classmethod
    def examples(cls) -> list[Structure]:
        """With all parts; an arrow; too large for the matrix."""
        return [cls(1, 1), cls(1, 0), cls()]


@dataclasses.dataclass(frozen=True)
class Toeplitz(Stored):
    """Lower, or upper, triangular matrices with equal entries along every diagonal, n numbers.

    >>> singd = SINGD(torch.nn.Linear(4, 2), structure=Toeplitz())
    """

    upper: bool = False

    def dense(self, k: Tensor, n: int) -> Tensor:
        """The diagonals' values in their places."""
        lag = self._lag(n, k.device)
        return torch.where(lag >= 0, k[..., lag.clamp_min(0)], 0)

    def _write(self, x: Tensor) -> Tensor:
        return x[..., 0, :] if self.upper else x[..., :, 0]

    def _project(self, s: Tensor) -> Tensor:
        """Means along the diagonals, twice but for the middle one."""
        n = s.shape[-1]
        lag = self._lag(n, s.device).flatten()
        sums = s.new_zeros(*s.shape[:-2], n)
        inside = lag >= 0
        sums.index_add_(-1, lag[inside], s.flatten(-2)[..., inside])
        twice = torch.full((n,), 2, dtype=s.dtype, device=s.device)
        twice[0] = 1
        return sums * twice / torch.arange(n, 0, -1, dtype=s.dtype, device=s.device)

    def _lag(self, n: int, device: torch.device) -> Tensor:
        i = torch.arange(n, device=device)
        return i - i[:, None] if self.upper else i[:, None] - i

    @classmethod
    def examples(cls) -> list[Structure]:
        """Both."""
        return [cls(), cls(upper=True)]
