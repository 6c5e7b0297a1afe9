"""How the learning rate goes: up over the warmup, and down to zero at the end of the budget, never beyond it."""

from __future__ import annotations

import math
from collections.abc import Callable

DECAY = 0.2
"""Share of the steps over which "wsd" (warmup, stable, decay) goes down."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "linear": lambda t: 1 - t,
    "wsd": lambda t: min(1.0, (1 - t) / DECAY),
}
"""Factor of the peak learning rate at each time from 0, where the warmup ends, to 1, the end of training."""


def factor(name: str, step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate in a step, counted from 0; `warmup` is a share of the steps."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return SCHEDULES[name]((step - rising) / (steps - rising))
