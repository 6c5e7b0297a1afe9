"""The one step of every optimiser on every manifold, as a function of tensors; compiled where asked for."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.tensors import as_tuple
from steepest.transforms.base import Blocks, Chain, Context, State


def advance(
    manifold: Manifold,
    chain: Chain,
    x: Any,
    g: Any,
    states: tuple[State, ...],
    left: Any,
    lr: Any,
    step: Any,
    phase: Any = 0,
) -> tuple[Any, Any]:
    """Carry what has to follow the point, pull, transform, push and retract in one move.

    Args:
        manifold: where the points are.
        chain: the method.
        x: the points.
        g: Euclidean gradients there.
        states: the chain's state of each block; changed in place.
        left: where first-order state is at rest: a tuple of what `_leave` returned; None where it need not follow.
        lr: learning rate, a number or a tensor.
        step: number of this step, from 1, a number or a tensor.
        phase: of periodic work: see `Context`.

    Returns:
        The points' new places, on plain tensors the direction against which they go instead; and `left` for the next
        step.
    """
    frame = manifold.frame(x)
    h = as_tuple(manifold._pull(frame, g))
    if left is not None:
        carry(chain, left[0], h, states, Context(manifold, frame, lr, step - 1, phase=phase))
    h = chain.update(h, states, Context(manifold, frame, lr, step, phase=phase))
    if isinstance(manifold, Euclidean):
        return h[0], None
    moves = chain.carried and not manifold.identity_carry
    h = tuple(-lr * b for b in h)
    return manifold._move(frame, h if len(h) > 1 else h[0]), (manifold._leave(frame),) if moves else None


def carry(chain: Chain, left: Any, h: Blocks, states: tuple[State, ...], ctx: Context) -> None:
    """Bring first-order state from a frame that its points have left to that of `ctx`, in which h are coordinates."""

    def move(old: Blocks) -> Blocks:
        return as_tuple(ctx.manifold._carry(left, ctx.frame, old if len(old) > 1 else old[0]))

    def conform(old: Blocks) -> Blocks:
        return as_tuple(ctx.manifold._conform(ctx.frame, old if len(old) > 1 else old[0]))

    chain.carry(states, h, ctx, move, conform)


class Compiled:
    """`advance` by torch.compile, once for each layout of points; rates and step numbers go in as tensors, so that
    schedulers do not compile it anew."""

    def __init__(self) -> None:
        self._functions: dict[Any, Any] = {}

    def advance(self, layout: Any, manifold: Manifold, chain: Chain, x: Any, g: Any, *rest: Any) -> tuple[Any, Any]:
        """`advance`, of points of this layout."""
        if layout not in self._functions:
            self._functions[layout] = torch.compile(advance, dynamic=False, **_own_cache())
        device = as_tuple(x)[0].device
        *state, lr, step, phase = rest
        numbers = [_number(value, device) for value in (lr, step, phase)]
        return self._functions[layout](manifold, chain, x, g, *state, *numbers)


def _number(value: float | Tensor, device: torch.device) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)


def _own_cache() -> dict[str, Any]:
    """Without it all layouts share one cache, which gives up, without a word, after eight (torch < 2.12)."""
    known = inspect.signature(torch.compile).parameters
    return {"isolate_recompiles": True} if "isolate_recompiles" in known else {}
