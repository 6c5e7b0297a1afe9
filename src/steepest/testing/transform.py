"""What every transform must satisfy."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds import Euclidean, FixedRank, Manifold, Sphere, Stiefel
from steepest.manifolds.base import as_tuple
from steepest.testing.asserts import assert_close
from steepest.transforms import Chain, Context, Transform, chain

TRANSFORM_CHECKS: list[Callable[[Transform], None]] = []
"""Every check, in order."""

PLACES: list[tuple[Manifold, Any]] = [
    (Euclidean(), (5, 3)),
    (Euclidean(1), (4,)),
    (Euclidean(3), (2, 3, 4)),
    (Sphere(), (4,)),
    (Stiefel(), (5, 2)),
    (FixedRank(), ((5, 2), (2, 4))),
]


def check_transform(transform: Transform) -> None:
    """Run every check."""
    for check in TRANSFORM_CHECKS:
        check(transform)


def _check(function: Callable[[Transform], None]) -> Callable[[Transform], None]:
    TRANSFORM_CHECKS.append(function)
    return function


class Run:
    """A transform alone in a chain, at one point, fed with random gradients."""

    def __init__(self, transform: Transform, manifold: Manifold, shape: Any, batch: tuple[int, ...] = ()) -> None:
        shapes = (*batch, *shape) if manifold.arity == 1 else tuple((*batch, *s) for s in shape)
        generator = torch.Generator().manual_seed(0)
        self.x = manifold.random_point(shapes, generator=generator, dtype=torch.float64)
        self.chain: Chain = chain(transform)
        self.context = Context(manifold, manifold.frame(self.x), 0.1, 1)
        self.states = self.chain.init(self.gradient(0), self.context)

    def gradient(self, step: int) -> tuple[Tensor, ...]:
        """Coordinates of a random gradient."""
        generator = torch.Generator().manual_seed(step)
        g = tuple(torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in as_tuple(self.x))
        h = self.context.manifold._pull(self.context.frame, g if isinstance(self.x, tuple) else g[0])
        return as_tuple(h)

    def step(self, number: int, h: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """The transformed gradient of one step."""
        ctx = Context(self.context.manifold, self.context.frame, 0.1, number)
        return self.chain.update(self.gradient(number) if h is None else h, self.states, ctx)


@_check
def check_in_place(transform: Transform) -> None:
    """The input is left alone; the state is changed in place and keeps its tensors; shapes and dtypes are kept."""
    for manifold, shape in PLACES:
        run = Run(transform, manifold, shape)
        before = [dict(state) for state in run.states]
        for step in (1, 2, 3):
            h = run.gradient(step)
            copies = [b.clone() for b in h]
            out = run.step(step, h)
            assert all(torch.equal(b, c) for b, c in zip(h, copies, strict=True)), "update changes its input"
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
    for manifold, shape in PLACES:
        run = Run(transform, manifold, shape, (3,))
        h = run.gradient(0)
        for state, block in zip(run.states, h, strict=True):
            for key, value in state.items():
                assert isinstance(value, Tensor), f"state {key} is no tensor"
                assert key.startswith(f"{transform.name}."), f"state {key} is not under {transform.name}."
                assert value.shape[:1] == (3,), (
                    f"state {key} of shape {tuple(value.shape)} does not begin with the batch"
                )
            for key in run.chain.carried:
                assert state[key].shape == block.shape, f"carried state {key} is not like the coordinates"


@_check
def check_batch(transform: Transform) -> None:
    """A batch gives what its elements give one by one, step after step."""
    for manifold, shape in PLACES:
        whole = Run(transform, manifold, shape, (3,))
        for element in range(3):
            batched, one = Run(transform, manifold, shape, (3,)), Run(transform, manifold, shape)
            one.x = tuple(t[element] for t in as_tuple(whole.x)) if isinstance(whole.x, tuple) else whole.x[element]
            one.context = Context(manifold, manifold.frame(one.x), 0.1, 1)
            for step in (1, 2, 3):
                h = batched.gradient(step)
                ctx = Context(manifold, one.context.frame, 0.1, step)
                alone = one.chain.update(tuple(b[element] for b in h), one.states, ctx)
                together = tuple(o[element] for o in batched.step(step, h))
                # Muon-grade polynomials in bfloat16 see another order of sums
                assert_close(
                    together, alone, f"step {step} in a batch", 2e-2 if "bfloat16" in repr(transform) else 1e-9
                )


@_check
def check_zero(transform: Transform) -> None:
    """A zero gradient gives no NaN, now or later."""
    for manifold, shape in PLACES:
        run = Run(transform, manifold, shape)
        zero = tuple(torch.zeros_like(b) for b in run.gradient(0))
        outs = [*run.step(1, zero), *run.step(2, zero), *run.step(3)]
        assert all(o.isfinite().all() for o in outs), "a zero gradient leads to NaN"


@_check
def check_resume(transform: Transform) -> None:
    """Copied state continues to the last bit."""
    for manifold, shape in PLACES:
        run, other = Run(transform, manifold, shape), Run(transform, manifold, shape)
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
