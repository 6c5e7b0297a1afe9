"""Points of one shape, stepped as one batch."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from steepest.linalg.dispatch import BATCH, BATCHED_UP_TO
from steepest.linalg.precision import rounded, widen
from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import as_tuple, like
from steepest.optim.advance import carry
from steepest.optim.axes import from_matrix, to_matrix
from steepest.optim.point import Point
from steepest.transforms.base import Blocks, Chain, Context, State


class Bucket:
    """Points of one shape, dtype, device, manifold and age; more than one are stacked along a new first dimension."""

    def __init__(self, points: Sequence[Point], kept: list[list[dict[str, Any]]], step: int) -> None:
        self.points, self.kept = points, kept
        self.step = step
        """Steps taken so far."""
        self.constraint = points[0].constraint
        self.slots = list(zip(*(p.params for p in points), strict=True))
        """For each tensor of a point, those of all points."""
        self.storage: tuple[State, ...] = ()
        """State of each block, stacked over the points."""
        self.views: list[tuple[dict[str, Any], str, Tensor]] = []
        """Every tensor's state dictionary and key, with the part of the storage that is there."""
        self.left: tuple[Any] | None = None
        """Where first-order state is at rest: what `_carry` needs of the frame that the points have left since."""
        self.chain = Chain(())
        """What that state belongs to."""

    @property
    def manifold(self) -> Manifold:
        """The manifold of all of them."""
        return self.constraint.manifold

    @property
    def layout(self) -> Any:
        """What tells this bucket's computation from that of others."""
        return self.manifold, len(self.points), self.points[0].layout

    @cached_property
    def phase(self) -> int:
        """By which points that are too large for a batch do periodic work at other steps: the same on every replica,
        and in a run that is resumed. Small ones do theirs together."""
        point = self.points[0]
        small = sum(p.numel() for p in point.params) <= BATCHED_UP_TO
        return 0 if small else zlib.crc32(repr(point.names).encode()) % 2**20

    # Points. ----------------------------------------------------------------------------------------------------------

    def gather(self) -> Any:
        """The points, stacked."""
        return self._stack(self.slots)

    def gather_grads(self) -> Any:
        """Their gradients, stacked."""
        return self._stack([[p.grad for p in slot] for slot in self.slots])

    def _stack(self, slots: Sequence[Sequence[Any]]) -> Any:
        parts = []
        for tensors, pattern in zip(slots, self.constraint.matrix, strict=True):
            if pattern is not None:
                tensors = [to_matrix(t, pattern, self.constraint.sizes) for t in tensors]
            parts.append(widen(torch.stack(tuple(tensors)) if len(tensors) > 1 else tensors[0]))
        return tuple(parts) if self.manifold.arity > 1 else parts[0]

    def descend(self, h: Tensor, lr: float | Tensor, rounding: str) -> None:
        """x <- x - lr h in place: the Euclidean step."""
        params, steps, generator = self.slots[0], self._unstacked(h, 0), self._generator(rounding)
        if isinstance(lr, Tensor) or steps[0].dtype != params[0].dtype:
            for t, change in zip(params, steps, strict=True):
                t.copy_(rounded(t.to(change.dtype) - lr * change, t.dtype, generator))  # once, after the step
        elif len(params) > 1:
            torch._foreach_add_(params, steps, alpha=-lr)
        else:
            params[0].sub_(steps[0], alpha=lr)

    def scatter(self, y: Any, rounding: str) -> None:
        """Write the points back."""
        generator = self._generator(rounding)
        for i, (tensors, part) in enumerate(zip(self.slots, as_tuple(y), strict=True)):
            values = self._unstacked(rounded(part, tensors[0].dtype, generator), i)
            if len(tensors) > 1:
                torch._foreach_copy_(tensors, values)
            else:
                tensors[0].copy_(values[0])

    def _generator(self, rounding: str) -> torch.Generator | None:
        """Of stochastic rounding: the same on every replica, and in a run that is resumed."""
        if rounding != "stochastic":
            return None
        seed = zlib.crc32(f"{self.points[0].names} {self.step}".encode())
        return torch.Generator(self.points[0].params[0].device).manual_seed(seed)

    def _unstacked(self, part: Tensor, slot: int) -> list[Tensor]:
        values, pattern = list(part.unbind(0)) if len(self.points) > 1 else [part], self.constraint.matrix[slot]
        if pattern is None:
            return values
        return [from_matrix(v, pattern, t) for v, t in zip(values, self.slots[slot], strict=True)]

    # State. -----------------------------------------------------------------------------------------------------------

    def start(self, chain: Chain, h: Blocks, ctx: Context) -> None:
        """State for what the chain has none of yet: all of it before the first step."""
        fresh = chain.init(h, ctx)
        self._hand_out(tuple({**new, **old} for new, old in zip(fresh, self.storage or [{}] * len(h), strict=True)))
        if self.step == 0:
            for kept in self.kept:
                kept[0]["step"] = torch.zeros(())

    def is_started(self, chain: Chain) -> bool:
        """Whether there is state of all that the chain keeps; momentum, say, may have been turned on."""
        return self.step > 0 and all(
            any(k.startswith(f"{link.name}.") for k in self.storage[0]) for link in chain.links if link.carried
        )

    def count(self) -> None:
        """One step more."""
        self.step += 1
        torch._foreach_add_([kept[0]["step"] for kept in self.kept], 1)

    def settle(self) -> None:
        """Carry first-order state to where the points are now, so that nothing need be kept but the tensors' states."""
        if self.left is not None:
            x = self.gather()
            frame = self.manifold.frame(x)
            h = as_tuple(self.manifold._pull(frame, like(x, [torch.zeros_like(t) for t in as_tuple(x)])))
            ctx = Context(self.manifold, frame, 0.0, self.step, phase=self.phase)
            carry(self.chain, self.left[0], h, self.storage, ctx)
            self.left = None

    def is_current(self) -> bool:
        """Whether nobody has replaced a tensor's state since it was handed out."""
        return all(kept.get(key) is part for kept, key, part in self.views)

    def collect(self) -> None:
        """Storage from the tensors' own states: after loading, or when other points have gradients than last time."""
        self.left = None
        if self.step == 0:
            return
        storage: tuple[State, ...] = tuple({} for _ in self.manifold.blocks)
        places = self._places()
        shared = {o for o, _ in places if [p[0] for p in places].count(o) > 1}
        for (owner, suffix), state in zip(places, storage, strict=True):
            for key in self.kept[0][owner]:
                if key == "step" or (owner in shared and not key.endswith(suffix)):
                    continue
                values = [kept[owner][key] for kept in self.kept]
                state[key.removesuffix(suffix)] = _stacked(values) if len(values) > 1 else values[0]
        self._hand_out(storage)

    def release(self) -> None:
        """Give every point a state of its own, so that the storage can go."""
        for kept, key, part in self.views:
            if len(self.points) > 1 and kept.get(key) is part:
                kept[key] = part.clone()

    def _places(self) -> list[tuple[int, str]]:
        """For each block, the tensor beside which its state is kept and what its keys end with."""
        owners, blocks = self.manifold.owners, self.manifold.blocks
        return [(o, f".{b}" if owners.count(o) > 1 else "") for o, b in zip(owners, blocks, strict=True)]

    def _hand_out(self, storage: tuple[State, ...]) -> None:
        self.storage, self.views = storage, []
        for (owner, suffix), state in zip(self._places(), storage, strict=True):
            for key, value in state.items():
                for kept, part in zip(self.kept, value.unbind(0) if len(self.kept) > 1 else (value,), strict=True):
                    kept[owner][key + suffix] = part
                    self.views.append((kept[owner], key + suffix, part))


class Buckets:
    """The buckets of an optimiser. Each is kept from step to step as long as the same points have gradients."""

    def __init__(self) -> None:
        self._of: dict[int, Bucket] = {}  # each point's, by its first tensor
        self._last: dict[int, tuple[list[Point], list[Bucket]]] = {}  # of each group

    def of(self, group: int, points: list[Point], state: dict[Tensor, Any]) -> list[Bucket]:
        """The points of a group sorted into buckets, with the state that torch keeps for their tensors."""
        last, buckets = self._last.get(group, (None, []))
        if last == points and all(self._is_current(b, state) for b in buckets):
            return buckets
        buckets = []
        for step, members in _sorted(points, state):
            kept = [[state[p] for p in point.params] for point in members]
            bucket = self._of.get(id(members[0].params[0]))
            if not (bucket and self._is_current(bucket, state) and _same(bucket, members, step)):
                for old in {id(b): b for p in members if (b := self._of.get(id(p.params[0])))}.values():
                    self._drop(old)
                keep_freed_memory()
                bucket = Bucket(members, kept, step)
                bucket.collect()
                self._of.update((id(point.params[0]), bucket) for point in members)
            buckets.append(bucket)
        self._last[group] = points, buckets
        return buckets

    def settle(self) -> None:
        """Carry all first-order state to where the points are now."""
        for bucket in self._of.values():
            bucket.settle()

    def _is_current(self, bucket: Bucket, state: dict[Tensor, Any]) -> bool:
        return (
            self._of.get(id(bucket.points[0].params[0])) is bucket
            and bucket.is_current()
            and all(
                state.get(p) is kept
                for point, states in zip(bucket.points, bucket.kept, strict=True)
                for p, kept in zip(point.params, states, strict=True)
            )
        )

    def _drop(self, bucket: Bucket) -> None:
        bucket.settle()
        bucket.release()
        for point in bucket.points:
            del self._of[id(point.params[0])]


@cache
def keep_freed_memory() -> None:
    """Once: free a block of 31 MiB, untouched, for what it teaches the allocator.

    glibc gives what is freed back to the system beyond twice the largest block that it has seen freed (at most 64 MiB).
    Where no activations are that large, temporaries of a step then come as fresh pages every time, which takes up to
    twice as long as the step itself. Other allocators do not mind.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """Tensors along a new first dimension, each laid out as it is: to the bit, products depend on it."""
    first = values[0]
    out = first.new_empty_strided((len(values), *first.shape), (first.numel(), *first.stride()))
    return torch.stack(tuple(values), out=out)


def _sorted(points: Iterable[Point], state: dict[Tensor, Any]) -> Iterable[tuple[int, list[Point]]]:
    """Points of one layout and age, as many as fit into a batch; with the number of steps that they have taken."""
    alike: dict[Any, list[Point]] = defaultdict(list)
    for point in points:
        step = int(state[point.params[0]].get("step", 0))
        alike[step, point.layout].append(point)
    for (step, _), members in alike.items():
        size = sum(p.numel() for p in members[0].params)
        count = max(BATCH // max(size, 1), 1) if size <= BATCHED_UP_TO else 1
        for i in range(0, len(members), count):
            yield step, members[i : i + count]


def _same(bucket: Bucket, members: list[Point], step: int) -> bool:
    return (
        bucket.step == step
        and bucket.constraint == members[0].constraint
        and len(bucket.points) == len(members)
        and all(
            a.params[0] is b.params[0] and a.layout == b.layout for a, b in zip(bucket.points, members, strict=True)
        )
    )
