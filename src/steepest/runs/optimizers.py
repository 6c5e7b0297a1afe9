"""Which optimisers a command can offer, and what is measured of any of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor


def known_optimizers() -> dict[str, Any]:
    """The library's optimisers by name: those that can be built from parameters and a learning rate alone."""
    from steepest.optim import OPTIMIZERS

    return {name: cls for name, cls in OPTIMIZERS.items() if _takes_lr_alone(cls)}


def _takes_lr_alone(cls: Any) -> bool:
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return "lr" in [p.name for p in parameters] and set(needed) <= {"lr"}


def state_bytes(optimizer: Any) -> int:
    """Memory of the optimiser's state tensors, in bytes."""
    return sum(t.numel() * t.element_size() for t in _tensors(list(optimizer.state.values())))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
