"""A transform around another one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steepest.transforms.base import Context, State, Transform


class Wrapper(Transform):
    """What a transform with a field `inner` says of itself where it is as that one is."""

    inner: Transform

    @property
    def joint(self) -> bool:
        """As the inner transform."""
        return self.inner.joint

    @property
    def of_point(self) -> bool:
        """As the inner transform."""
        return self.inner.of_point

    @property
    def carried(self) -> tuple[str, ...]:
        """As the inner transform."""
        return self.inner.carried

    @property
    def partial(self) -> bool:
        """As the inner transform."""
        return self.inner.partial

    @property
    def positive(self) -> tuple[str, ...]:
        """As the inner transform."""
        return self.inner.positive

    def first_order(self, key: str, state: State, like: Tensor, ctx: Context) -> Tensor:
        """As the inner transform, from its state."""
        return self.inner.first_order(key, self.opened(state), like, ctx)

    def set_first_order(self, key: str, value: Tensor, state: State, ctx: Context) -> None:
        """As the inner transform, in its state."""
        own = self.opened(state)
        self.inner.set_first_order(key, value, own, ctx)
        self.closed(own, state)

    def opened(self, state: State) -> State:
        """The inner transform's state."""
        return state

    def closed(self, own: State, state: State) -> None:
        """Keep what has become of it."""

    def init(self, h: Any, ctx: Context) -> State:
        """As the inner transform."""
        return self.inner.init(h, ctx)
