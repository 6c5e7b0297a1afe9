"""Layers of one shape, worked off as one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from steepest.curvature.activity import Layer, Seen

State = dict[str, Tensor]


@dataclasses.dataclass(eq=False)
class Bucket:
    """Layers of one shape, dtype and device, with their state stacked along a new first dimension."""

    layers: list[Layer]
    dtype: torch.dtype
    """In which is computed."""
    state: State = dataclasses.field(default_factory=dict)
    seen: list[Seen | None] = dataclasses.field(default_factory=list)

    def part(self, index: Sequence[int]) -> State:
        """State of some of the layers, as it is computed with."""
        whole = len(index) == len(self.layers)
        return {k: (v if whole else v[list(index)]).to(self.dtype) for k, v in self.state.items()}

    def replace(self, index: Sequence[int], new: State, ok: Tensor) -> None:
        """New state of some of the layers, where it is ok."""
        for key, value in new.items():
            old = self.state[key]
            whole = len(index) == len(self.layers)
            kept = old if whole else old[list(index)]
            value = torch.where(ok.reshape(-1, *[1] * (value.ndim - 1)), value.to(old.dtype), kept)
            if whole:
                old.copy_(value)
            else:
                old[list(index)] = value
