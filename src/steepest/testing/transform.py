"""What every transform must satisfy."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds import Euclidean, FixedRank, Manifold, Product, Sphere, Stiefel
from steepest.manifolds.tensors import as_tuple, like
from steepest.testing.asserts import assert_close, refuses_complex
from steepest.transforms import Context, Transform, chain

TRANSFORM_CHECKS: list[Callable[[Transform], None]] = []
"""Every check, in order."""

PLACES: list[tuple[Manifold, Any]] = [
    (Euclidean(), (5, 3)),
    (Euclidean(1), (4,)),
    (Euclidean(4), (2, 3, 2, 2)),
    (Sphere(), (4,)),
    (Stiefel(), (5, 2)),
    (FixedRank(), ((5, 2), (2, 4))),
    (Product((Euclidean(3), Euclidean(), Euclidean(1))), ((2, 3, 4), (3, 2), (4,))),
]
"""Manifolds and shapes of their points: blocks of one to four dimensions, one to three of them."""


def check_transform(transform: Transform) -> None:
    """Run every check."""
    for check in TRANSFORM_CHECKS:
        check(transform)


def _check(function: Callable[[Transform], None]) -> Callable[[Transform], None]:
    TRANSFORM_CHECKS.append(function)
    return function


class Run:
    """A transform alone in a chain, at one point, fed with random gradients."""

    def __init__(
        self,
        transform: Transform,
        manifold: Manifold,
        shape: Any,
        batch: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float64,
    ) -> None:
        shapes = (*batch, *shape) if manifold.arity == 1 else tuple((*batch, *s) for s in shape)
        generator = torch.Generator().manual_seed(0)
        self.manifold, self.chain = manifold, chain(transform)
        self.move_to(manifold.random_point(shapes, generator=generator, dtype=dtype))
        self.states = self.chain.init(self.gradient(0), self.context)

    def move_to(self, x: Any) -> None:
        """Go on from the point x."""
        self.x, self.context = x, Context(self.manifold, self.manifold.frame(x), 0.1, 1)

    def gradient(self, step: int) -> tuple[Tensor, ...]:
        """Coordinates of a random gradient."""
        generator = torch.Generator().manual_seed(step)
        g = tuple(torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in as_tuple(self.x))
        return as_tuple(self.manifold._pull(self.context.frame, like(self.x, g)))

    def step(self, number: int, h: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """The transformed gradient of one step."""
        ctx = dataclasses.replace(self.context, step=number)
        return self.chain.update(self.gradient(number) if h is None else h, self.states, ctx)


def _runs(transform: Transform, batch: tuple[int, ...] = ()) -> Iterator[Callable[[], Run]]:
    """A fresh run at each place, real, and complex where the manifold has such points and the transform takes them."""
    for manifold, shape in PLACES:
        for dtype in (torch.float64, torch.complex128):
            if dtype.is_complex and "complex" not in manifold.scalars:
                continue
            make = functools.partial(Run, transform, manifold, shape, batch, dtype)
            if not dtype.is_complex or not _refuses_complex(make):
                yield make


def _refuses_complex(make: Callable[[], Run]) -> bool:
    return refuses_complex(lambda: make().step(1))


@_check
def check_in_place(transform: Transform) -> None:
    """The input is left alone; the state is changed in place and keeps its tensors; shapes and dtypes are kept."""
    for make in _runs(transform):
        run = make()
        before = [dict(state) for state in run.states]
        for step in (1, 2, 3):
            h = run.gradient(step)
            copies = [b.clone() for b in h]
            kept = [{k: v.clone() for k, v in state.items()} for state in run.states]
            out = run.step(step, h)
            assert all(torch.equal(b, c) for b, c in zip(h, copies, strict=True)), "update changes its input"
            if transform.idle(dataclasses.replace(run.context, step=step)):
                same = [torch.equal(v, a[k]) for a, b in zip(run.states, kept, strict=True) for k, v in b.items()]
                assert all(same), "an idle step changes the state"
            same = [b.shape == o.shape and b.dtype == o.dtype for b, o in zip(h, out, strict=True)]
            assert all(same), "update changes a shape or a dtype"
            assert all(o.isfinite().all() for o in out), "update gives NaN or infinity"
        for old, state in zip(before, run.states, strict=True):
            assert old.keys() == state.keys(), "update adds or drops a state key"
            assert all(old[k] is state[k] for k in old), "update replaces a state tensor instead of changing it"


@_check
def check_state(transform: Transform) -> None:
    """State is plain tensors under the transform's name, beginning with batch dimensions; `carried` names
    coordinates."""
    for make in _runs(transform, (3,)):
        run = make()
        h = run.gradient(0)
        for state in run.states:
            for key, value in state.items():
                assert isinstance(value, Tensor), f"state {key} is no tensor"
                assert key.startswith(f"{transform.name}."), f"state {key} is not under {transform.name}."
                assert value.shape[:1] == (3,), (
                    f"state {key} of shape {tuple(value.shape)} does not begin with the batch"
                )
        seen: list[tuple[Tensor, ...]] = []
        run.chain.carry(run.states, h, run.context, functools.partial(_noted, seen), lambda blocks: blocks)
        assert len(seen) == len(run.chain.carried), "first-order state is missing"
        for blocks in seen:
            same = [a.shape == b.shape for a, b in zip(blocks, h, strict=True)]
            assert all(same), "carried state is not like the coordinates"


def _noted(seen: list[tuple[Tensor, ...]], blocks: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The blocks as they are, kept in `seen`."""
    seen.append(blocks)
    return blocks


@_check
def check_batch(transform: Transform) -> None:
    """A batch gives what its elements give one by one, step after step."""
    for make, make_one in zip(_runs(transform, (3,)), _runs(transform), strict=True):
        for element in range(3):
            batched, one = make(), make_one()
            one.move_to(like(batched.x, [t[element] for t in as_tuple(batched.x)]))
            for step in (1, 2, 3):
                h = batched.gradient(step)
                alone = one.step(step, tuple(b[element] for b in h))
                together = tuple(o[element] for o in batched.step(step, h))
                # Muon-grade polynomials in bfloat16 see another order of sums
                assert_close(
                    together, alone, f"step {step} in a batch", 2e-2 if "bfloat16" in repr(transform) else 1e-9
                )


@_check
def check_lazy_conjugates(transform: Transform) -> None:
    """A complex gradient that torch has only marked as conjugated, as its autograd may leave it, is like any other."""
    for make in _runs(transform):
        run, other = make(), make()
        for step in (1, 2):
            h = run.gradient(step)
            marked = tuple(b.conj().resolve_conj().conj() for b in h)
            # in bfloat16 a product in another order may round otherwise
            tolerance = 2e-2 if "bfloat16" in repr(transform) else 1e-9
            assert_close(other.step(step, marked), run.step(step, h), "a conjugated gradient", tolerance)


@_check
def check_zero(transform: Transform) -> None:
    """A zero gradient gives no NaN, now or later."""
    for make in _runs(transform):
        run = make()
        zero = tuple(torch.zeros_like(b) for b in run.gradient(0))
        outs = [*run.step(1, zero), *run.step(2, zero), *run.step(3)]
        assert all(o.isfinite().all() for o in outs), "a zero gradient leads to NaN"


@_check
def check_resume(transform: Transform) -> None:
    """Copied state continues to the last bit."""
    for make in _runs(transform):
        run, other = make(), make()
        for step in (1, 2):
            run.step(step)
        for state, copy in zip(run.states, other.states, strict=True):
            for key in state:
                copy[key].copy_(state[key])
        same = [torch.equal(a, b) for a, b in zip(run.step(3), other.step(3), strict=True)]
        assert all(same), "state does not hold all that the transform remembers"


@_check
def check_names(transform: Transform) -> None:
    """Frozen, and the same after JSON."""
    assert type(transform).__dataclass_params__.frozen, "a transform is frozen"  # type: ignore[attr-defined]
    spec = json.loads(json.dumps(transform.to_spec()))
    assert Transform.from_spec(spec) == transform, "to_spec does not survive JSON"
