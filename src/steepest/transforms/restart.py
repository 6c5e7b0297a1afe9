"""State that starts anew from time to time."""

from __future__ import annotations

import dataclasses
from typing import Any

from steepest.checks import check_range
from steepest.transforms.adam_scale import AdamScale
from steepest.transforms.base import Context, State, Transform
from steepest.transforms.momentum import Momentum
from steepest.transforms.wrapper import Wrapper


@dataclasses.dataclass(frozen=True)
class Restart(Wrapper):
    """The transform `inner`, whose state is reset to that of a first step after every so many steps; it counts its
    steps from there, so that a bias is corrected as at a start.

    Args:
        inner: any transform.
        every: steps from one start to the next.

    "Momentum reset" of Glentis, Li, Shang, Han, Tsaknakis, Wei and Hong 2025 (2505.22922), who reset Adam's moments
    when they refactor a weight B A: see `refactor_`.
    """

    inner: Transform
    every: int = 200

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", Transform.from_spec(self.inner))
        check_range("every", self.every, 1)

    @property
    def entrywise(self) -> bool:
        """As the inner transform."""
        return self.inner.entrywise

    @property
    def name(self) -> str:
        """The inner transform's."""
        return self.inner.name

    def update(self, h: Any, state: State, ctx: Context) -> Any:
        """The inner transform's step, from a fresh state where it is time."""
        past = (ctx.step - 1) % self.every
        inside = dataclasses.replace(ctx, step=past + 1)
        if past == 0 and ctx.step > 1:
            for key, value in self.inner.init(h, inside).items():
                state[key].copy_(value)
        return self.inner.update(h, state, inside)

    @classmethod
    def examples(cls) -> list[Transform]:
        """Adam, and a momentum that starts anew at every second step."""
        return [cls(AdamScale()), cls(Momentum(0.9), every=2)]
