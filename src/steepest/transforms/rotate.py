"""An inner chain in another basis."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steepest.bases import Basis, CosineBasis, Eigenbasis, RandomBasis
from steepest.checks import check_range
from steepest.manifolds.euclidean import Euclidean
from steepest.transforms.adam_scale import AdamScale
from steepest.transforms.base import (
    Context,
    State,
    Transform,
    as_matrix,
    link_of,
    part_of_state,
)
from steepest.transforms.momentum import Momentum
from steepest.transforms.nest import Nest

SIDES = ("both", "left", "right")


@dataclasses.dataclass(frozen=True)
class Rotate(Nest):
    """Q_L inner(Q_L^H h Q_R) Q_R^H, with an orthonormal basis for each side of the block h.

    Where h comes with axes that mean nothing, an entrywise method had better choose its own: Adam in the eigenbasis of
    Shampoo's statistics is SOAP, Adafactor there is Shampoo with twice the power.

    A basis that learns only looks at the first step, and nothing moves: so that no gradient ever chooses the basis in
    which it is measured. For the inner chain the second step is number 1. When a basis turns, first-order state turns
    with it, exactly; other state, such as variances, stays with the columns: see `Eigenbasis`.

    Args:
        inner: one transform, or several in the order in which they act.
        basis: of each side.
        sides: "both", "left" or "right".
        max_side: longer sides keep their axes.

    Vyas et al. 2024, "SOAP" (2409.11321), algorithm 3.
    """

    inner: Any
    basis: Basis = Eigenbasis()  # noqa: RUF009  (a frozen value)
    sides: str = "both"
    max_side: int = 10_000

    def __post_init__(self) -> None:
        self._settle_inner()
        object.__setattr__(self, "basis", Basis.from_spec(self.basis))
        if self.sides not in SIDES:
            raise ValueError(f"sides: got {self.sides!r}, expected one of {', '.join(map(repr, SIDES))}")
        check_range("max_side", self.max_side, 1)

    def init(self, h: Tensor, ctx: Context) -> State:
        """The inner chain's state, under its transforms' names, and the bases' as `left.<key>` and `right.<key>`."""
        x = as_matrix(h, ctx.ndim)
        state = self.chain.init((torch.zeros_like(x),), self._inside(ctx))[0]
        for side, y in self._turning(x):
            state |= {f"{side}.{key}": value for key, value in self.basis.init(y).items()}
        return state

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """Rotate, transform, rotate back; then let the bases follow."""
        x, inside = as_matrix(h, ctx.ndim), self._inside(ctx)
        if inside.step > 0:
            step = self.chain.update((self._into(x, state),), (state,), inside)[0]
            out = self._back(step, state)
        else:
            out = torch.zeros_like(x)
        for side, y in self._turning(x):
            own = part_of_state(state, side)
            new = self.basis.follow(y, own, ctx.step - 1, ctx.phase)
            if new is not None:
                self._turn(side, self.basis.matrix(y, own), new, x, state, inside)
                own["basis"].copy_(new)
        return out.reshape(h.shape)

    def first_order(self, key: str, state: State, like: Tensor, ctx: Context) -> Tensor:
        """Rotated back."""
        link, own, name = link_of(self.inner, key, state)
        value = link.first_order(name, own, as_matrix(like, ctx.ndim), self._inside(ctx))
        return self._back(value, state).reshape(like.shape)

    def set_first_order(self, key: str, value: Tensor, state: State, ctx: Context) -> None:
        """Rotated."""
        link, own, name = link_of(self.inner, key, state)
        link.set_first_order(name, self._into(as_matrix(value, ctx.ndim), state), own, self._inside(ctx))

    def _inside(self, ctx: Context) -> Context:
        """What the inner chain may know."""
        step = ctx.step - 1 if self.basis.learns else ctx.step
        return dataclasses.replace(ctx, manifold=Euclidean(), frame=None, block=0, step=step)

    def _turning(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The sides that have a basis, and x with such a side in front."""
        for side, y in (("left", x), ("right", x.mH)):
            if self.sides in ("both", side) and 1 < y.shape[-2] <= self.max_side:
                yield side, y

    def _into(self, x: Tensor, state: State) -> Tensor:
        for side, y in self._turning(x):
            q = self.basis.matrix(y, part_of_state(state, side))
            x = q.mH @ x if side == "left" else x @ q
        return x

    def _back(self, x: Tensor, state: State) -> Tensor:
        for side, y in self._turning(x):
            q = self.basis.matrix(y, part_of_state(state, side))
            x = q @ x if side == "left" else x @ q.mH
        return x

    def _turn(self, side: str, old: Tensor, new: Tensor, like: Tensor, state: State, inside: Context) -> None:
        """First-order state from one basis to another, by whichever products are the fewer."""
        for key in self.carried:
            link, own, name = link_of(self.inner, key, state)
            m = link.first_order(name, own, like, inside)
            m = m if side == "left" else m.mH
            m = new.mH @ (old @ m) if m.shape[-2] > m.shape[-1] else (new.mH @ old) @ m
            link.set_first_order(name, m if side == "left" else m.mH, own, inside)

    @classmethod
    def examples(cls) -> list[Transform]:
        """SOAP; one side; bases that stay. An eps and a shift that rounding does not reach: what Adam divides by is
        zero in directions without gradient."""
        adam = AdamScale(eps=1e-4)
        return [
            cls(adam, Eigenbasis(shift=1e-3)),
            cls([Momentum(0.9), adam], Eigenbasis(0.9, 2, shift=1e-3), "right"),
            cls(adam, CosineBasis(), "left"),
            cls(Momentum(0.9), RandomBasis(), max_side=3),
        ]
