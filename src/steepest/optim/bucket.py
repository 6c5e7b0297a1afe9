"""Points of one shape, stepped as one batch."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.optim.axes import from_matrix, pattern_error
from steepest.optim.constrain import Constraint, stored_precision
from steepest.transforms.base import Blocks, Chain, Context, State

BATCHED_UP_TO = 16_384
"""Entries of a point up to which a batched step is faster than one by one: above, stacking costs more than the calls
that it saves (measured on two cores: 64 x 64 gains 1.3 to 1.8 times, 256 x 256 loses)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """The tensors of one point, their names, and the manifold on which they lie."""

    params: tuple[Tensor, ...]
    names: tuple[str, ...]
    constraint: Constraint

    def has_grad(self) -> bool:
        """Whether there is anything to do, as in tensors without entries there is not; gradients of only some of the
        tensors, and sparse ones, are an error."""
        have = [p.grad is not None for p in self.params]
        if any(have) and not all(have):
            missing = ", ".join(n for n, h in zip(self.names, have, strict=True) if not h)
            raise ValueError(f"{missing} has no gradient, but the rest of its point ({', '.join(self.names)}) has one")
        for name, p in zip(self.names, self.params, strict=True):
            if p.grad is not None and p.grad.is_sparse:
                raise ValueError(
                    f"{name}: has a sparse gradient, expected a dense one; build its module with sparse=False"
                )
        return all(have) and any(p.numel() for p in self.params)

    def grads(self) -> list[Tensor]:
        """The tensors' gradients."""
        return [p.grad for p in self.params if p.grad is not None]

    def value(self) -> Any:
        """The point, computed with in at least float32."""
        return self.constraint.point(self.params)

    def pull(self) -> Any:
        """Coordinates of the gradient."""
        return self.constraint.manifold.pull(self.value(), self.constraint.point(self.grads()))

    def check(self) -> None:
        """Refuse a pattern that does not fit and a point off its manifold."""
        for name, p, pattern in zip(self.names, self.params, self.constraint.matrix, strict=True):
            if pattern is not None and (fault := pattern_error(tuple(p.shape), pattern, self.constraint.sizes)):
                raise ValueError(f"{name}: {fault}")
        if any(p.is_meta for p in self.params):
            return
        with torch.no_grad():
            self.constraint.manifold.check_point(self.value(), ", ".join(self.names), stored_precision(self.params[0]))


class Bucket:
    """Points of one shape, dtype, device, manifold and age; more than one are stacked along a new first dimension."""

    def __init__(self, points: list[Point], kept: list[list[dict[str, Any]]], step: int) -> None:
        self.points, self.kept, self.step = points, kept, step
        self.constraint = points[0].constraint
        self.storage: tuple[State, ...] | None = None
        """State of each block, stacked over the points."""

    @property
    def manifold(self) -> Manifold:
        """The manifold of all of them."""
        return self.constraint.manifold

    def gather(self) -> Any:
        """The points, stacked."""
        return self._stack([p.value() for p in self.points])

    def gather_grads(self) -> Any:
        """Their gradients, stacked."""
        return self._stack([self.constraint.point(p.grads()) for p in self.points])

    def descend(self, h: Tensor, lr: float | Tensor) -> None:
        """x <- x - lr h in place: the Euclidean step."""
        matrix = self.constraint.matrix[0]
        for p, part in zip(self.points, h.unbind(0) if len(self.points) > 1 else (h,), strict=True):
            t = p.params[0]
            change = from_matrix(part, matrix, t)
            if change.dtype != t.dtype:
                t.copy_(t.to(change.dtype) - lr * change)  # rounded once, after the step
            elif isinstance(lr, Tensor):
                t.sub_(lr * change)
            else:
                t.sub_(change, alpha=lr)

    def scatter(self, y: Any) -> None:
        """Write the points back."""
        parts = y if isinstance(y, tuple) else (y,)
        if len(self.points) == 1:
            self.constraint.write(self.points[0].params, y)
            return
        for point, *values in zip(self.points, *(part.unbind(0) for part in parts), strict=True):
            self.constraint.write(point.params, tuple(values))

    def states(self, chain: Chain, h: Blocks, ctx: Context) -> tuple[State, ...]:
        """The state of each block, stacked; the per-tensor state that torch keeps are views of it."""
        if self.step == 1:
            self.storage = chain.init(h, ctx)
            self._hand_out(self.storage)
            for kept in self.kept:
                kept[0]["step"] = torch.zeros(())
        elif self.storage is None or not self._is_current(self.storage):
            self.storage = self._collect()
            self._hand_out(self.storage)
        if any(key not in self.storage[0] for key in chain.carried):  # momentum, say, has been turned on
            fresh = chain.init(h, ctx)
            self.storage = tuple({**new, **old} for new, old in zip(fresh, self.storage, strict=True))
            self._hand_out(self.storage)
        for kept in self.kept:
            kept[0]["step"] += 1
        return self.storage

    def release(self, others: Bucket) -> None:
        """Give the points that are not among the others a state of their own, so that the storage can go."""
        taken = {id(state) for kept in others.kept for state in kept}
        for kept, key, part in self._views(self.storage) if self.storage else ():
            if id(kept) not in taken and key in kept and kept[key].data_ptr() == part.data_ptr():
                kept[key] = part.clone()
        self.storage = None

    def _stack(self, points: list[Any]) -> Any:
        if len(points) == 1:
            return points[0]
        if isinstance(points[0], tuple):
            return tuple(torch.stack(parts) for parts in zip(*points, strict=True))
        return torch.stack(points)

    def _places(self) -> list[tuple[int, str]]:
        """For each block, the tensor beside which its state is kept and what its keys end with."""
        owners, blocks = self.manifold.owners, self.manifold.blocks
        return [(o, f".{b}" if owners.count(o) > 1 else "") for o, b in zip(owners, blocks, strict=True)]

    def _views(self, storage: tuple[State, ...]) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
        """Every tensor's state dictionary and key, with the part of the storage that belongs there."""
        for (owner, suffix), state in zip(self._places(), storage, strict=True):
            for key, value in state.items():
                for kept, part in zip(self.kept, value.unbind(0) if len(self.kept) > 1 else (value,), strict=True):
                    yield kept[owner], key + suffix, part

    def _hand_out(self, storage: tuple[State, ...]) -> None:
        for kept, key, part in self._views(storage):
            kept[key] = part

    def _is_current(self, storage: tuple[State, ...]) -> bool:
        """Whether nobody has replaced a tensor's state since it was handed out."""
        views = self._views(storage)
        return all(key in kept and kept[key].data_ptr() == part.data_ptr() for kept, key, part in views)

    def _collect(self) -> tuple[State, ...]:
        """Storage from the tensors' own states: after loading, or when other points have gradients than last time."""
        storage: tuple[State, ...] = tuple({} for _ in self.manifold.blocks)
        places = self._places()
        shared = {o for o, _ in places if [p[0] for p in places].count(o) > 1}
        for (owner, suffix), state in zip(places, storage, strict=True):
            for key in self.kept[0][owner]:
                if key == "step" or (owner in shared and not key.endswith(suffix)):
                    continue
                values = [kept[owner][key] for kept in self.kept]
                state[key.removesuffix(suffix)] = torch.stack(values) if len(values) > 1 else values[0]
        return storage


class Buckets:
    """The buckets of a step. Their storage is kept from step to step as long as the same points have gradients."""

    def __init__(self) -> None:
        self._last: dict[int, Bucket] = {}  # each point's, by its first tensor

    def of(self, points: list[Point], state: dict[Tensor, Any]) -> Iterator[Bucket]:
        """The points sorted into buckets, with the state that torch keeps for their tensors."""
        sorted_: dict[Any, list[Point]] = defaultdict(list)
        for point in points:
            step = int(state[point.params[0]].get("step", 0)) + 1
            layout = tuple((tuple(p.shape), p.dtype, p.device) for p in point.params)
            alone = sum(p.numel() for p in point.params) > BATCHED_UP_TO
            sorted_[step, layout, id(point) if alone else None].append(point)
        for (step, *_), members in sorted_.items():
            bucket = Bucket(members, [[state[p] for p in point.params] for point in members], step)
            first = [id(point.params[0]) for point in members]
            for last in {id(b): b for i in first if (b := self._last.get(i))}.values():
                if [id(point.params[0]) for point in last.points] == first:
                    bucket.storage = last.storage
                else:
                    last.release(bucket)
            self._last.update(dict.fromkeys(first, bucket))
            yield bucket
