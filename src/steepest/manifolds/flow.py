"""Flows of vector fields, for geodesics that have an equation but no formula."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steepest.manifolds.geodesic import COLUMNS, STEPS, _extrapolated

State = tuple[Tensor, ...]


def flow(field: Callable[[State], State], state: State) -> State:
    """The solution at time one of state' = field(state), with a relative error of about 1000 eps, as in
    `geodesic.integrate`; NaN where it ends before. Differentiable through its steps."""
    tolerance = 1000 * torch.finfo(state[0].dtype).eps
    time, step = 0.0, 1.0
    for _ in range(STEPS):
        step = min(step, 1 - time)
        arrived, error = _extrapolated(field, state, step)
        if error <= tolerance:
            state, time = arrived, time + step
        step *= min(2.0, max(0.1, 0.8 * (tolerance / max(error, 1e-300)) ** (1 / (2 * COLUMNS))))
        if time >= 1:
            return state
        if step < 1e-6:
            break
    return tuple(t * torch.nan for t in state)
