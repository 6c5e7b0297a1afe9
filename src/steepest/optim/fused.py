"""Chains that torch has one kernel for: on plain tensors they run at its speed.

A fused kernel reads gradient, parameter and state once, where a chain reads and writes them once for every operation.
The state is the chain's own, under the chain's keys, so that a run may go from one to the other at any step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.euclidean import Euclidean
from steepest.optim.point import Point
from steepest.transforms import AdamScale, Chain, Momentum, WeightDecay
from steepest.transforms.adam_scale import has_fused

Kernel = Callable[..., None]


def fused_step(chain: Chain, points: list[Point], state: Any, group: dict[str, Any]) -> list[Point]:
    """One step of those points for which torch has a kernel of the whole chain; returns the others."""
    found = _kernel(chain)
    if found is None:
        return points
    kernel, init = found
    fits = [_fits(p) for p in points]
    mine = [p.params[0] for p, fit in zip(points, fits, strict=True) if fit]
    for layout in dict.fromkeys((p.device, p.dtype) for p in mine):
        params = [p for p in mine if (p.device, p.dtype) == layout]
        states = [state[p] for p in params]
        for p, kept in zip(params, states, strict=True):
            if not kept or any(key not in kept for key in init):  # momentum, say, may have been turned on
                fresh = {key: torch.full_like(p, value) for key, value in init.items()}
                kept.update({**fresh, "step": torch.zeros(()), **kept})
        steps = [kept["step"] for kept in states]
        torch._foreach_add_(steps, 1)
        steps = steps if layout[0].type == "cpu" else list(torch.stack(steps).to(layout[0], non_blocking=True).unbind())
        columns = [[kept[key] for kept in states] for key in init]
        kernel(params, [p.grad for p in params], columns, steps, lr=group["lr"], maximize=group["maximize"])
    return [p for p, fit in zip(points, fits, strict=True) if not fit]


def _fits(point: Point) -> bool:
    """Whether a point is a plain tensor of a kind that the kernels take."""
    p, grad = point.params[0], point.params[0].grad
    return (
        isinstance(point.constraint.manifold, Euclidean)
        and grad is not None
        and p.is_contiguous()
        and has_fused(grad, p)
    )


def _kernel(chain: Chain) -> tuple[Kernel, dict[str, float]] | None:
    """The kernel, and the state that it keeps with its first values; None where torch has none."""
    match [link for link in chain.links if link != WeightDecay(0.0)]:
        case [AdamScale(debias=True) as adam]:
            return partial(_adam, torch._fused_adamw_, adam, 0.0), _moments(adam)
        case [AdamScale(debias=True) as adam, WeightDecay() as decay]:
            return partial(_adam, torch._fused_adamw_, adam, decay.rate), _moments(adam)
        case [WeightDecay() as decay, AdamScale(debias=True) as adam]:
            return partial(_adam, torch._fused_adam_, adam, decay.rate), _moments(adam)
        case [Momentum(ema=False) as momentum]:
            return partial(_sgd, momentum, 0.0), {"momentum.buffer": 0.0}
        case [WeightDecay() as decay, Momentum(ema=False) as momentum]:
            return partial(_sgd, momentum, decay.rate), {"momentum.buffer": 0.0}
        case [WeightDecay() as decay]:
            return partial(_sgd, None, decay.rate), {}
        case []:
            return partial(_sgd, None, 0.0), {}
    return None


def _moments(adam: AdamScale) -> dict[str, float]:
    return {f"adam_scale.{key}": 0.0 for key in adam.keys}


def _adam(
    kernel: Kernel,
    adam: AdamScale,
    decay: float,
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[list[Tensor]],
    steps: list[Tensor],
    **options: Any,
) -> None:
    adam.fused(kernel, params, grads, moments, steps, weight_decay=decay, **options)


def _sgd(
    momentum: Momentum | None,
    decay: float,
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[list[Tensor]],
    _: list[Tensor],
    **options: Any,
) -> None:
    torch._fused_sgd_(
        params,
        grads,
        buffers[0] if momentum else [],
        weight_decay=decay,
        momentum=momentum.beta if momentum else 0.0,
        dampening=0.0,
        nesterov=momentum.nesterov if momentum else False,
        is_first_step=False,
        **options,
    )
