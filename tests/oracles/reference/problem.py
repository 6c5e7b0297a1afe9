"""The problem that the official implementations and ours are run on: fixed random gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

STEPS = 20
RECORDED = (1, STEPS)
MATRICES = ((6, 4), (4, 6), (5, 5))
VECTOR = ((5,),)
SEED = 20


def problem(shapes: list[list[int]]) -> tuple[list[nn.Parameter], list[list[Tensor]]]:
    """Start values and `STEPS` gradients for each shape; a shape's numbers do not depend on which others there are."""
    start, gradients = [], []
    for shape in shapes:
        generator = torch.Generator().manual_seed(SEED + sum(10**i * n for i, n in enumerate(shape)))
        numbers = torch.randn(1 + STEPS, *shape, generator=generator, dtype=torch.float64)
        start.append(nn.Parameter(numbers[0].clone()))
        gradients.append(list(numbers[1:]))
    return start, [list(of_step) for of_step in zip(*gradients, strict=True)]


def trace(
    params: list[nn.Parameter],
    gradients: list[list[Tensor]],
    optimizer: Any,
    before: Callable[[int], None] = lambda step: None,
) -> dict[int, list[Tensor]]:
    """The parameters after each of the `RECORDED` steps; `before` is called with the number of steps taken."""
    seen = {}
    for step, of_step in enumerate(gradients):
        before(step)
        for p, g in zip(params, of_step, strict=True):
            p.grad = g.clone()
        optimizer.step()
        if step + 1 in RECORDED:
            seen[step + 1] = [p.detach().clone() for p in params]
    return seen
