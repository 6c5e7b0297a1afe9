"""A transform under another name."""

from __future__ import annotations

import dataclasses
from typing import Any

from steepest.transforms.base import Context, State, Transform
from steepest.transforms.momentum import Momentum
from steepest.transforms.wrapper import Wrapper


@dataclasses.dataclass(frozen=True)
class Named(Wrapper):
    """The transform `inner` under the name `label`, so that one chain can hold two of a kind."""

    label: str
    inner: Transform

    @property
    def entrywise(self) -> bool:
        """As the inner transform."""
        return self.inner.entrywise

    @property
    def name(self) -> str:
        """The label."""
        return self.label

    def update(self, h: Any, state: State, ctx: Context) -> Any:
        """As the inner transform."""
        return self.inner.update(h, state, ctx)

    @classmethod
    def examples(cls) -> list[Transform]:
        """A second average."""
        return [cls("slow", Momentum(0.99))]
