"""What a basis is: axes for one side of a matrix, in which an inner chain works."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

from torch import Tensor

from steepest.spec import Spec

State = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Basis(Spec, abc.ABC):
    """An orthonormal basis, the columns of a matrix `(*b, n, n)` or `(n, n)`, for the first axis of y `(*b, n, k)`."""

    learns: ClassVar[bool] = False
    """Whether it is found from what passes through it. It is then asked to `follow` before it is used first."""

    def init(self, y: Tensor) -> State:
        """State before the first step; every tensor begins with y's batch dimensions."""
        return {}

    @abc.abstractmethod
    def matrix(self, y: Tensor, state: State) -> Tensor:
        """The basis as it is now, for matrices like y."""

    def follow(self, y: Tensor, state: State, step: int, phase: int = 0) -> Tensor | None:
        """Take note of y, in step number `step` from 0, and return the basis to change to, or None where it stays. What
        is taken note of changes in the state; the basis is left for the caller to put there, as `state["basis"]`.

        Args:
            y: what the basis is for.
            state: its state.
            step: steps made before.
            phase: a number that differs from point to point, by which periodic work is spread over steps.
        """
        return None

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[Basis]:
        """Instances that the common suite runs on."""
