"""Orthogonal matrices from trained numbers: the map that each rotation of an adapter is written in.

Every map sends zero, or its own start, to the identity, and agrees with exp(2 Q), Q skew, to first order, so that one
learning rate suits all of those that are written in skew matrices. One convention holds for all: R itself, never its
transpose, multiplies columns.
"""

from __future__ import annotations

import abc
import dataclasses

import torch
from torch import Tensor

from steepest.adapters.base import Source
from steepest.adapters.givens import givens
from steepest.adapters.reflections import paired, reflect
from steepest.linalg.expm import expm
from steepest.manifolds.base import Manifold
from steepest.manifolds.orthogonal import SpecialOrthogonal
from steepest.spec import Spec

LU_BATCH = 128
"""Above this many rows torch's LU decompositions of several matrices on several threads of a CPU are wrong: at 160, two
matrices and two threads solutions are off by 19."""


class Rotation(Spec, abc.ABC):
    """A map from trained numbers `(*b, ...)` to orthogonal matrices `(*b, n, n)`."""

    @abc.abstractmethod
    def start(self, batch: tuple[int, ...], n: int, source: Source) -> Tensor:
        """Numbers whose matrix is the identity, for each element of the batch."""

    @abc.abstractmethod
    def matrix(self, theta: Tensor, n: int) -> Tensor:
        """R `(*b, n, n)`."""

    @abc.abstractmethod
    def count(self, n: int) -> int:
        """How many numbers are trained for one matrix."""

    def manifold(self) -> Manifold | None:
        """Where the numbers live, if they are a point."""
        return None


class _Skew(Rotation):
    """A function of a skew matrix, of which the entries above the diagonal are trained."""

    def start(self, batch: tuple[int, ...], n: int, source: Source) -> Tensor:
        """Q = 0."""
        return source.weight.new_zeros(*batch, n * (n - 1) // 2)

    def matrix(self, theta: Tensor, n: int) -> Tensor:
        """The function at Q."""
        return self.of(skew_matrix(theta, n))

    @abc.abstractmethod
    def of(self, q: Tensor) -> Tensor:
        """The function at a skew Q `(*b, n, n)`."""

    def count(self, n: int) -> int:
        """Entries above the diagonal."""
        return n * (n - 1) // 2


@dataclasses.dataclass(frozen=True)
class Cayley(_Skew):
    """R = (I + Q)(I - Q)^-1, orthogonal to rounding; every rotation without the eigenvalue -1 (Cayley 1846)."""

    def of(self, q: Tensor) -> Tensor:
        """By one solve; the two factors commute."""
        identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
        if not (q.is_cpu and q.ndim > 2 and q.shape[-1] > LU_BATCH):
            return torch.linalg.solve(identity - q, identity + q)
        unit, triangle = torch.linalg.qr(identity - q)
        return torch.linalg.solve_triangular(triangle, unit.mT @ (identity + q), upper=True)


@dataclasses.dataclass(frozen=True)
class CayleyNeumann(_Skew):
    """The same R, with (I - Q)^-1 = (I + Q)(I + Q^2)(I + Q^4)... from products alone (Qiu et al. 2025, "OFTv2",
    2506.19847, who cut the series after a fixed number of terms).

    With k factors R is off by the factor I - Q^(2^k), and so is no longer orthogonal where Q is not small: for five
    terms of the series and entries of 0.4, by 76 in the norm of R^T R - I. So the number of factors is guarded: they
    are multiplied until the norm of that power is below the dtype's rounding, and where six do not suffice (a Q of norm
    about 0.7 or more) the solve of `Cayley` is taken. This looks at Q, once a pass; `Cayley` does not, and is faster on
    a CPU.
    """

    most: int = 6

    def of(self, q: Tensor) -> Tensor:
        """Product after product, while the last power of Q says that they are needed."""
        if torch.compiler.is_compiling():
            return Cayley().of(q)  # a number of factors that depends on values cannot be compiled
        identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
        power, r = q, identity + q
        for _ in range(self.most):
            r = r + power @ r
            power = power @ power
            if power.detach().abs().amax() * q.shape[-1] <= torch.finfo(q.dtype).eps:
                return r
        return Cayley().of(q)


@dataclasses.dataclass(frozen=True)
class Exponential(_Skew):
    """R = exp(2 Q): every rotation."""

    def of(self, q: Tensor) -> Tensor:
        """The factor 2 makes a small Q the same rotation as under `Cayley`."""
        return expm(2 * q)


@dataclasses.dataclass(frozen=True)
class Reflections(Rotation):
    """R = H_1 H_2 ... H_k, a product of Householder's reflections along trained vectors (n, k), equal in pairs at the
    start. Any length of a vector gives the same reflection.

    Args:
        number: k, an even number; n of them reach every rotation.
    """

    number: int = 8

    def __post_init__(self) -> None:
        if self.number < 2 or self.number % 2:
            raise ValueError(f"number: got {self.number!r}, expected an even number of reflections, 2 or more")

    def start(self, batch: tuple[int, ...], n: int, source: Source) -> Tensor:
        """Random vectors, each twice."""
        return paired(source.normal(*batch, n, self.number // 2, purpose="reflections"))

    def matrix(self, theta: Tensor, n: int) -> Tensor:
        """The product, applied to the identity."""
        return reflect(theta, torch.eye(n, dtype=theta.dtype, device=theta.device).expand(*theta.shape[:-2], n, n))

    def count(self, n: int) -> int:
        """All entries of the vectors."""
        return n * self.number


@dataclasses.dataclass(frozen=True)
class Givens(Rotation):
    """R = (G_L ... G_2 G_1)^T: level s = 1, 2, 4, ... turns the planes of the coordinates (2 j s, 2 j s + s), each by
    an angle of its own; n - 1 angles, with which R^T can turn any one vector onto the first axis (Ma et al. 2024,
    "GOFT", 2404.04316, who multiply the weight by that transpose)."""

    def start(self, batch: tuple[int, ...], n: int, source: Source) -> Tensor:
        """Angles 0."""
        return source.weight.new_zeros(*batch, n - 1)

    def matrix(self, theta: Tensor, n: int) -> Tensor:
        """The levels, one after the other, on the identity's rows."""
        identity = torch.eye(n, dtype=theta.dtype, device=theta.device).expand(*theta.shape[:-1], n, n)
        return givens(theta, identity)

    def count(self, n: int) -> int:
        """As many as games in a tournament of n."""
        return n - 1


@dataclasses.dataclass(frozen=True)
class Free(Rotation):
    """R itself is trained, as a point of SO(n), by an optimiser of this library: no map at all. With another optimiser
    R leaves the group."""

    def start(self, batch: tuple[int, ...], n: int, source: Source) -> Tensor:
        """The identity."""
        return torch.eye(n, dtype=source.weight.dtype, device=source.weight.device).expand(*batch, n, n).clone()

    def matrix(self, theta: Tensor, n: int) -> Tensor:
        """What is trained."""
        return theta

    def count(self, n: int) -> int:
        """All entries, of which n (n - 1) / 2 are free."""
        return n * n

    def manifold(self) -> Manifold:
        """Rotations."""
        return SpecialOrthogonal()


def skew_matrix(theta: Tensor, n: int) -> Tensor:
    """The skew matrix `(*b, n, n)` with the numbers `(*b, n (n - 1) / 2)` above its diagonal, row by row."""
    rows, columns = torch.triu_indices(n, n, 1, device=theta.device)
    upper = theta.new_zeros(*theta.shape[:-1], n, n)
    upper[..., rows, columns] = theta
    return upper - upper.mT
