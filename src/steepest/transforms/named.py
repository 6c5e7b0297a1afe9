"""A transform under another name."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from steepest.transforms.base import Context, State, Transform
from steepest.transforms.momentum import Momentum


@dataclasses.dataclass(frozen=True)
class Named(Transform):
    """The transform `inner` under the name `label`, so that one chain can hold two of a kind."""

    label: str
    inner: Transform

    @property
    def joint(self) -> bool:
        """As the inner transform."""
        return self.inner.joint

    @property
    def entrywise(self) -> bool:
        """As the inner transform."""
        return self.inner.entrywise

    @property
    def carried(self) -> tuple[str, ...]:
        """As the inner transform."""
        return self.inner.carried

    @property
    def positive(self) -> tuple[str, ...]:
        """As the inner transform."""
        return self.inner.positive

    @property
    def of_point(self) -> bool:
        """As the inner transform."""
        return self.inner.of_point

    @property
    def name(self) -> str:
        """The label."""
        return self.label

    def init(self, h: Any, ctx: Context) -> State:
        """As the inner transform."""
        return self.inner.init(h, ctx)

    def first_order(self, key: str, state: State, like: Tensor, ctx: Context) -> Tensor:
        """As the inner transform."""
        return self.inner.first_order(key, state, like, ctx)

    def set_first_order(self, key: str, value: Tensor, state: State, ctx: Context) -> None:
        """As the inner transform."""
        self.inner.set_first_order(key, value, state, ctx)

    def update(self, h: Any, state: State, ctx: Context) -> Any:
        """As the inner transform."""
        return self.inner.update(h, state, ctx)

    @classmethod
    def examples(cls) -> list[Transform]:
        """A second average."""
        return [cls("slow", Momentum(0.99))]
