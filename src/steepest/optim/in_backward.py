"""Steps during the backward pass, so that no two gradients need be there at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from steepest.optim.engine import Optimizer
from steepest.optim.point import Point


def step_in_backward(optimizer: Optimizer) -> SteppingInBackward:
    """Step each parameter as soon as `backward()` has its gradient, and free that gradient: at the peak of memory there
    are the activations and a few gradients instead of all.

    `optimizer.step()` then does what is left, and may stay where it was in a training loop: parameters without a
    gradient in the last backward pass of several, or none at all. Learning rates are those of the time of `backward()`.

    What needs all gradients at once cannot be had: clipping by their common norm, a GradScaler, and "nothing was
    changed" when one of them is not finite, for those before it have stepped. Points of several tensors step when all
    of theirs are there. Activation checkpointing must be torch's with `use_reentrant=False`, for the other one calls a
    parameter's gradient complete before it is.

    Args:
        optimizer: parameters that it is given later step as usual.

    Returns:
        A handle, for gradient accumulation and for an end of it.

    Lv et al. 2023, "LOMO" (2306.09782); as an option of GaLore, Zhao et al. 2024 (2403.03507).

    >>> model = torch.nn.Linear(4, 2)
    >>> stepping = step_in_backward(SGD(model.parameters(), lr=0.1))
    >>> x = torch.ones(3, 4)
    >>> with stepping.accumulate():
    ...     model(x).sum().backward()
    >>> model.weight.grad is None
    False
    >>> model(x).sum().backward()
    >>> model.weight.grad is None
    True
    """
    return SteppingInBackward(optimizer)


class SteppingInBackward:
    """What `step_in_backward` returns."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._paused = False
        self._handles: list[RemovableHandle] = []
        self._of: dict[Tensor, tuple[int, Point]] = {}
        self._seen: dict[Point, set[Tensor]] = {}
        for i, group in enumerate(optimizer.param_groups):
            for point in optimizer._points(group):
                for p in point.params:
                    self._of[p] = i, point
                    self._handles.append(p.register_post_accumulate_grad_hook(self._hook))

    @contextlib.contextmanager
    def accumulate(self) -> Iterator[None]:
        """Backward passes in this context only add to the gradients, as all but the last of several are to do."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def remove(self) -> None:
        """Leave all steps to `optimizer.step()` again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def _hook(self, p: Tensor) -> None:
        if self._paused:
            return
        index, point = self._of[p]
        seen = self._seen.setdefault(point, set())
        seen.add(p)
        if len(seen) == len(point.params):
            seen.clear()
            self._optimizer._step({index: [point]})
            for t in point.params:
                t.grad = None
