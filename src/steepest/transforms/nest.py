"""A transform around inner chains that see something else than its block."""

from __future__ import annotations

from typing import Any

from steepest.transforms.base import Chain, Transform, chain_of


class Nest(Transform):
    """What a transform with a field `inner`, a chain that works on coordinates of its own, says by that chain."""

    inner: Any

    def _settle_inner(self) -> None:
        """Read the field, and refuse what needs the point itself, which such a chain does not see."""
        object.__setattr__(self, "inner", chain_of(self.inner).links)
        if outside := [link.name for link in self.inner if link.of_point]:
            raise ValueError(f"inner: {outside[0]} needs the point itself; put it behind {self.name}, not into it")

    @property
    def chain(self) -> Chain:
        """The inner chain."""
        return Chain(self.inner)

    @property
    def carried(self) -> tuple[str, ...]:
        """The inner chain's."""
        return self.chain.carried
