"""What a manifold's coordinate directions are, and which of them move at once."""

from __future__ import annotations

import abc
import functools
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.solvers.problem import Iterate


class Coordinates(abc.ABC):
    """Directions that span each tangent space, in rounds: those of a round act on disjoint parts of the point, so that
    moving along them one after the other, in any order, is one batched operation.

    A direction is D = d/dt of x moved by t, its slope <G, D> with G the Euclidean gradient. Rounds are numbered, and
    made of labels (of rows, say), which `order`, a permutation of them, may exchange: so are rounds drawn at random.

    What is moved is not the point but w = `start(at)`, the point or a factor of it beside the gradient: the gradient
    stays that of the start while w moves, so that many rounds can be gone with one gradient.
    """

    manifolds: ClassVar[tuple[type[Manifold], ...]]
    """Where these are directions."""

    def __init__(self, manifold: Manifold) -> None:
        self.manifold = manifold

    def fault(self, x: Tensor) -> str:
        """Why not on this manifold, or for points like x; the empty string where nothing is wrong."""
        return ""

    @abc.abstractmethod
    def labels(self, x: Tensor) -> int:
        """How many labels there are."""

    @abc.abstractmethod
    def rounds(self, x: Tensor) -> int:
        """How many rounds have each direction once."""

    @abc.abstractmethod
    def start(self, at: Iterate) -> Any:
        """w at the iterate."""

    @abc.abstractmethod
    def slopes(self, w: Any, k: int, order: Tensor | None) -> Tensor:
        """Slopes of the directions of round k at w, `(*b, m)`."""

    @abc.abstractmethod
    def turn(self, w: Any, k: int, order: Tensor | None, t: Tensor) -> Any:
        """w moved along the directions of round k by t `(*b, m)`."""

    @abc.abstractmethod
    def point(self, w: Any) -> Tensor:
        """The point that w stands for."""


def coordinates(manifold: Manifold) -> Coordinates | None:
    """The coordinate directions of a manifold; None where none are known."""
    rule = next((family for family in Coordinates.__subclasses__() if isinstance(manifold, family.manifolds)), None)
    return None if rule is None else rule(manifold)


@functools.lru_cache(maxsize=8)
def _tournament(n: int) -> tuple[Tensor, Tensor]:
    even = n + n % 2
    round_, step = torch.arange(even - 1, device="cpu")[:, None], torch.arange(1, even // 2, device="cpu")
    i = torch.cat([torch.full_like(round_, even - 1), (round_ + step) % (even - 1)], -1)
    j = torch.cat([round_, (round_ - step) % (even - 1)], -1)
    return (i, j) if n == even else (i[:, 1:], j[:, 1:])


def matches(n: int) -> int:
    """Rounds of a tournament in which each of n meets each other once."""
    return n - 1 + n % 2 if n > 1 else 0


def match(n: int, k: int, order: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """The disjoint pairs of round k (the circle method: one stays, the others move round), after `order`."""
    i, j = (side[k] for side in _tournament(n))
    if order is not None:
        i, j = order[i], order[j]
    return i.to(device), j.to(device)


def rows(x: Tensor, i: Tensor) -> Tensor:
    """Rows i of x `(*b, n, p)`, `(*b, m, p)`."""
    return x.index_select(-2, i)


def with_rows(x: Tensor, i: Tensor, j: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x with a for its rows i and b for its rows j."""
    return x.index_copy(-2, torch.cat([i, j]), torch.cat([a, b], -2))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows, `(*b, m)`."""
    return (a * b).sum(-1)
