"""What a projector is: the subspace in which an inner chain works, and when it moves."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

from torch import Tensor

from steepest.checks import check_range
from steepest.spec import Spec

State = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Moment:
    """The step at hand, and what is known of it; read-only."""

    step: int
    """Its number, from 1."""
    lr: float | Tensor = 1.0
    phase: int = 0
    """A number that differs from point to point, by which work that is due now and then is spread over steps."""
    momentum: Tensor | None = None
    """First-order state in the subspace `(*b, m, r)`, if there is any."""


@dataclasses.dataclass(frozen=True)
class Projector(Spec, abc.ABC):
    """An r-dimensional subspace for the rows of a matrix x `(*b, m, n)`, by a basis `(*b, n, r)`, or `(n, r)` for a
    whole batch: x basis are the coordinates in it.

    The subspace moves at the first step and then every so often: by `before`, from the gradient that is about to be
    projected, or by `after`, from one that has been, for the next. Both leave the state alone, and return entries that
    replace its own, or None where nothing moves.

    Args:
        every: steps from one move to the next.
        spread: move different points at different steps, by their `Moment.phase`, so that none takes much longer than
            the others; with False all move at steps 1, 1 + every, 1 + 2 every, ...
    """

    every: int = 200
    spread: bool = True

    needs_momentum: ClassVar[bool] = False
    """Whether it asks for `Moment.momentum`."""

    def __post_init__(self) -> None:
        check_range("every", self.every, 1)

    @property
    def orthonormal(self) -> bool:
        """Whether the basis is orthonormal at every step."""
        return True

    def due(self, at: Moment) -> bool:
        """Whether the subspace moves at this step, besides the first."""
        return bool((at.step - 1 + self._phase(at)) % self.every == 0)

    def epoch(self, at: Moment) -> int:
        """How often it has been due up to this step."""
        return int((at.step - 1 + self._phase(at)) // self.every)

    def age(self, at: Moment) -> int:
        """Number of this step since the subspace came to where it is, from 1."""
        return int(min(at.step, (at.step - 1 + self._phase(at)) % self.every + 1))

    def _phase(self, at: Moment) -> int:
        return at.phase if self.spread else 0

    def init(self, x: Tensor, rank: int) -> State:
        """State before the first step; every tensor begins with x's batch dimensions."""
        return {}

    @abc.abstractmethod
    def basis(self, x: Tensor, rank: int, state: State, at: Moment) -> Tensor:
        """The basis that belongs to the state, for matrices like x."""

    def before(self, x: Tensor, rank: int, state: State, at: Moment) -> State | None:
        """Where to move to before x is projected."""
        return None

    def after(self, x: Tensor, low: Tensor, state: State, at: Moment) -> State | None:
        """Where to move to after x has been projected to `low`, its coordinates `(*b, m, r)`."""
        return None

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[Projector]:
        """Instances that the common suite runs on."""
