"""What official preconditioners of layers, and ours, are run on: small networks and random batches, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

STEPS = 20
LR = 0.1
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "vectors": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)), (6, 5), (6, 3)),
    "unbiased": (lambda: nn.Sequential(nn.Linear(5, 4, False), nn.Tanh(), nn.Linear(4, 3, False)), (6, 5), (6, 3)),
    "sequences": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), (6, 3, 5), (6, 3, 3)),
    "images": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)),
        (6, 2, 3, 3),
        (6, 2),
    ),
}
"""How a network is built, and the shapes of a batch of inputs and of targets."""


def network(name: str) -> nn.Module:
    """A network in float64 whose numbers are its name's."""
    model = MODELS[name][0]().double()
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / 2)
    return model


def run(name: str, model: nn.Module, step: Callable[[int], Any]) -> list[list[float]]:
    """The parameters after `STEPS` steps on half the squared error of an example, averaged over examples."""
    generator = torch.Generator().manual_seed(20)
    _, inputs, targets = MODELS[name]
    for i in range(STEPS):
        x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (inputs, targets))
        model.zero_grad()
        loss(model(x), y).backward()
        step(i)
    return [p.detach().flatten().tolist() for p in model.parameters()]


def loss(output: Tensor, y: Tensor) -> Tensor:
    """Half the squared error of an example, averaged over examples."""
    return (output - y).square().sum() / (2 * len(y))
