"""The direction of one chain with the length of another."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.adam_scale import AdamScale
from steepest.transforms.base import Chain, Context, State, Transform, as_matrix, chain_of, link_of, part_of_state
from steepest.transforms.momentum import Momentum
from steepest.transforms.precondition import Precondition


@dataclasses.dataclass(frozen=True)
class Graft(Transform):
    """d |s| / |d|, block by block, with d the step of one chain and s that of another: the learning rate of the second
    then suits the first. Where d is zero, so is the step.

    Args:
        direction: one transform, or several in order, that make d.
        magnitude: those that make s; with none of them s is h.
        start: steps before this one are s itself.

    Agarwal, Anil, Hazan, Koren and Zhang 2020, "Disentangling adaptive gradient methods from learning rates"
    (2002.11803), section 2.
    """

    direction: Any
    magnitude: Any = ()
    start: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "direction", chain_of(self.direction).links)
        object.__setattr__(self, "magnitude", chain_of(self.magnitude).links)
        check_range("start", self.start, 1)
        for name in ("direction", "magnitude"):
            if joint := [link.name for link in getattr(self, name) if link.joint]:
                raise ValueError(
                    f"{name}: {joint[0]} sees all blocks of a point at once, and grafting works on each alone"
                )

    @property
    def chains(self) -> dict[str, Chain]:
        """Both, by the prefix of their state."""
        return {"direction": Chain(self.direction), "magnitude": Chain(self.magnitude)}

    @property
    def of_point(self) -> bool:
        """As one of them."""
        return any(link.of_point for link in (*self.direction, *self.magnitude))

    @property
    def carried(self) -> tuple[str, ...]:
        """Both chains'."""
        return tuple(f"{name}.{key}" for name, inner in self.chains.items() for key in inner.carried)

    @property
    def partial(self) -> bool:
        """As one of them."""
        return any(link.partial for link in (*self.direction, *self.magnitude))

    def init(self, h: Tensor, ctx: Context) -> State:
        """Both chains' state, as `direction.<transform>.<key>` and `magnitude.<transform>.<key>`."""
        fresh = {name: inner.init((h,), ctx)[0] for name, inner in self.chains.items()}
        return {f"{name}.{key}": value for name, state in fresh.items() for key, value in state.items()}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The direction at the other's length."""
        d, s = (inner.update((h,), (part_of_state(state, name),), ctx)[0] for name, inner in self.chains.items())
        if ctx.step < self.start:
            return s
        length, own = (torch.linalg.vector_norm(as_matrix(b, ctx.ndim), dim=(-2, -1)) for b in (s, d))
        factor = torch.where(own > 0, length / own, 0)
        return d * factor.reshape(*factor.shape, *(1,) * ctx.ndim)

    def first_order(self, key: str, state: State, like: Tensor, ctx: Context) -> Tensor:
        """The chain's that the key begins with."""
        link, own, name = self._link(key, state)
        return link.first_order(name, own, like, ctx)

    def set_first_order(self, key: str, value: Tensor, state: State, ctx: Context) -> None:
        """In the chain that the key begins with."""
        link, own, name = self._link(key, state)
        link.set_first_order(name, value, own, ctx)

    def _link(self, key: str, state: State) -> tuple[Transform, State, str]:
        name, _, rest = key.partition(".")
        return link_of(self.chains[name].links, rest, part_of_state(state, name))

    @classmethod
    def examples(cls) -> list[Transform]:
        """Shampoo at the gradient's length, and at Adam's from the second step on; momentum on both sides."""
        adam = AdamScale()
        return [cls(Precondition()), cls(Precondition(), adam, 2), cls(Momentum(0.9), [Momentum(0.5), adam])]
