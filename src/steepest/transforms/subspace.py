"""An inner chain in a subspace: what all low-rank methods share."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.euclidean import Euclidean
from steepest.projectors import Moment, Power, Projector
from steepest.transforms.base import Context, State, as_matrix, link_of, part_of_state
from steepest.transforms.nest import Nest
from steepest.transforms.ranks import check_rank, rank_of

SIDES = ("short", "long", "left", "right")
MOVES = ("keep", "rotate", "reset")


@dataclasses.dataclass(frozen=True)
class Projected:
    """One step in the subspace; all matrices are turned so that the right side is the projected one."""

    x: Tensor
    """What was projected, `(*b, m, n)`."""
    low: Tensor
    """Its coordinates x P, `(*b, m, r)`."""
    step: Tensor
    """What the inner chain made of them, `(*b, m, r)`."""
    basis: Tensor
    """P, `(*b, n, r)` or `(n, r)`."""
    view: View
    """The way back from such matrices to blocks as they came."""

    def lift(self, low: Tensor) -> Tensor:
        """Coordinates in the subspace as a matrix like x."""
        return low @ self.basis.mH


@dataclasses.dataclass(frozen=True)
class Subspace(Nest):
    """Runs an inner chain on the coordinates of h in a subspace of low rank, whose basis P has n x r entries where the
    projected side has length n: on h P, or on P^H h. How a step of full size comes of it, a subclass says.

    Blocks of which the projected side is no longer than r, and so vectors, are left to the inner chain as they are.

    Args:
        inner: one transform, or several in the order in which they act; they see a matrix with one side r.
        rank: r as an int, or as a float up to 1.0 its share of the shorter side, rounded up.
        projector: the subspace, and when it moves.
        side: which one is projected: "short" (the inner state has r max(m, n) entries, as published), "long"
            (r min(m, n), and the basis has the more), "left" or "right".
        moved: what becomes of the inner state when the subspace moves from P to P': "keep" leaves the numbers as they
            are, as published; "rotate" makes M P^H P' of first-order state M and v (P^H P')^2, entry by entry, of
            variances v, which is exact for entries without correlation (other state, such as sums along rows, stays);
            "reset" starts the inner chain anew.
    """

    inner: Any
    rank: float = 0.25
    projector: Projector = Power()  # noqa: RUF009  (a frozen value)
    side: str = "short"
    moved: str = "keep"

    def __post_init__(self) -> None:
        self._settle_inner()
        object.__setattr__(self, "projector", Projector.from_spec(self.projector))
        check_rank(self.rank)
        for name, value, known in (("side", self.side, SIDES), ("moved", self.moved, MOVES)):
            if value not in known:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, known))}")

    @abc.abstractmethod
    def lifted(self, p: Projected, state: State) -> Tensor:
        """The step for `p.x`, of its shape; entries of `own` in the state may be changed."""

    def own(self, h: Tensor, ctx: Context) -> State:
        """Fresh entries of the state that are the subclass's own, for the block h."""
        return {}

    def fed(self, h: Tensor, state: State) -> Tensor:
        """What is projected."""
        return h

    @property
    def partial(self) -> bool:
        """What is kept of momentum is a part of it."""
        return True

    def init(self, h: Tensor, ctx: Context) -> State:
        """The projector's state as `projector.<key>`, the inner chain's under its transforms' names."""
        view = View(self, h, ctx)
        inner = self.chain.init((view.zeros(),), view.inside)[0]
        if not view.rank:
            return inner
        start = self.projector.init(view.turned(h), view.rank)
        return {f"projector.{key}": value for key, value in start.items()} | inner | self.own(h, ctx)

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """Project, transform, lift."""
        view = View(self, h, ctx)
        if not view.rank:
            return self.chain.update((h,), (state,), view.inside)[0]
        x = view.turned(self.fed(h, state))
        kept, at = _projectors(state), self._moment(state, view, ctx)
        if (new := self.projector.before(x, view.rank, kept, at)) is not None:
            self._move(new, x, state, view, at, settled=at.step > 1)
        basis = self.projector.basis(x, view.rank, kept, at)
        low = x @ basis
        inside = view.inside
        if self.moved == "reset":
            inside = dataclasses.replace(inside, step=self.projector.age(at))
        step = self.chain.update((view.flipped(low),), (state,), inside)[0]
        new = self.projector.after(x, low, kept, at)  # before x changes, which may be a view of the state
        out = self.lifted(Projected(x, low, view.flipped(step), basis, view), state)
        if new is not None:
            self._move(new, x, state, view, at)
        return view.back(out)

    def first_order(self, key: str, state: State, like: Tensor, ctx: Context) -> Tensor:
        """Lifted by the basis; what is a subclass's own is kept in full."""
        if "." not in key:
            return state.get(key, torch.zeros_like(like))
        view = View(self, like, ctx)
        link, own, name = link_of(self.inner, key, state)
        low = link.first_order(name, own, view.zeros(), view.inside)
        return view.back(view.flipped(low) @ self._basis(state, view, ctx).mH) if view.rank else low

    def set_first_order(self, key: str, value: Tensor, state: State, ctx: Context) -> None:
        """In the subspace, whose coordinates are the nearest; what lies outside of it is lost."""
        if "." not in key:
            state.get(key, torch.empty_like(value)).copy_(value)
            return
        view = View(self, value, ctx)
        link, own, name = link_of(self.inner, key, state)
        link.set_first_order(name, self._coordinates(value, state, view, ctx) if view.rank else value, own, view.inside)

    def _coordinates(self, value: Tensor, state: State, view: View, ctx: Context) -> Tensor:
        basis = self._basis(state, view, ctx)
        low = view.turned(value) @ basis
        if not self.projector.orthonormal:
            factor, _ = torch.linalg.cholesky_ex(basis.mH @ basis)  # torch's LU of batches is wrong on CPUs from 160 on
            low = torch.cholesky_solve(low.mH, factor).mH
        return view.flipped(low)

    # Moving. ----------------------------------------------------------------------------------------------------------

    def _moment(self, state: State, view: View, ctx: Context) -> Moment:
        momentum = None
        if self.projector.needs_momentum and self.chain.carried:
            link, own, name = link_of(self.inner, self.chain.carried[0], state)
            momentum = view.flipped(link.first_order(name, own, view.zeros(), view.inside))
        return Moment(ctx.step, ctx.lr, ctx.phase, momentum)

    def _basis(self, state: State, view: View, ctx: Context) -> Tensor:
        at = Moment(ctx.step, ctx.lr, ctx.phase)
        return self.projector.basis(view.turned(view.like), view.rank, _projectors(state), at)

    def _move(self, new: State, x: Tensor, state: State, view: View, at: Moment, settled: bool = True) -> None:
        """Take over the projector's new state, and see to the inner chain's, if there is any yet."""
        kept = _projectors(state)
        if settled and self.moved == "rotate":
            old = self.projector.basis(x, view.rank, kept, dataclasses.replace(at, step=at.step - 1))
            self._rotate(old.mH @ self.projector.basis(x, view.rank, kept | new, at), state, view)
        for key, value in new.items():
            kept[key].copy_(value)
        if settled and self.moved == "reset":
            for key, value in self.chain.init((view.zeros(),), view.inside)[0].items():
                state[key].copy_(value)

    def _rotate(self, turn: Tensor, state: State, view: View) -> None:
        """First-order state by `turn` `(*b, r, r)`, variances by the squares of its entries."""
        like = view.zeros()
        for link in self.inner:
            own = part_of_state(state, link.name)
            for key in (*link.carried, *link.positive):
                if not any(f"{k}.".startswith(f"{key}.") for k in own):
                    continue
                value = link.first_order(key, own, like, view.inside)
                if value.shape == like.shape:
                    by = turn if key in link.carried else (turn.conj() * turn).real
                    turned = view.flipped(value) @ by.to(value.dtype)
                    link.set_first_order(key, view.flipped(turned), own, view.inside)


class View:
    """A block as a matrix of which the right side is projected."""

    def __init__(self, low_rank: Subspace, like: Tensor, ctx: Context) -> None:
        self.like, self.ndim = like, ctx.ndim
        m, n = as_matrix(like, ctx.ndim).shape[-2:]
        self.flips = {"short": m < n, "long": m >= n, "left": True, "right": False}[low_rank.side]
        rank = rank_of(low_rank.rank, (m, n))
        self.rank = rank if rank < (m if self.flips else n) else 0
        """0 where there is nothing to project."""
        manifold = Euclidean(2 if self.rank else ctx.ndim)
        self.inside = dataclasses.replace(ctx, manifold=manifold, frame=None, block=0)
        """What the inner chain may know."""

    def flipped(self, x: Tensor) -> Tensor:
        """Transposed where the left side is projected: the way there and the way back."""
        return x.mH if self.flips else x

    def turned(self, h: Tensor) -> Tensor:
        """A block as such a matrix."""
        return self.flipped(as_matrix(h, self.ndim))

    def back(self, x: Tensor) -> Tensor:
        """Such a matrix as a block."""
        return self.flipped(x).reshape(self.like.shape)

    def zeros(self) -> Tensor:
        """What the inner chain sees, zero."""
        if not self.rank:
            return self.like.new_zeros(self.like.shape)
        x = self.turned(self.like)
        return self.flipped(x.new_zeros((*x.shape[:-1], self.rank)))


def _projectors(state: State) -> State:
    return part_of_state(state, "projector")
