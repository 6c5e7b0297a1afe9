"""A constant factor."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform


@dataclasses.dataclass(frozen=True)
class Scale(Transform):
    """h times a factor: the radius of a ball, say, behind a norm's dual map."""

    factor: float

    def __post_init__(self) -> None:
        check_range("factor", self.factor)

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The scaled block."""
        return h if self.factor == 1 else h * self.factor

    @classmethod
    def examples(cls) -> list[Transform]:
        """A tenth, and one."""
        return [cls(0.1), cls(1.0)]
