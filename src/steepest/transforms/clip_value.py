"""Steps of bounded entries."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform


@dataclasses.dataclass(frozen=True)
class ClipValue(Transform):
    """Entries h_ij / max(1, |h_ij| / bound): cut at the bound, complex ones along their ray.

    As `torch.nn.utils.clip_grad_value_`, at any place of a chain. Entrywise, so that it depends on the frame's axes.
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        check_range("bound", self.bound, open_low=True)

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The cut block."""
        if h.is_complex():
            return h / (h.abs() / self.bound).clamp_min(1)
        return torch.clamp(h, -self.bound, self.bound)

    @classmethod
    def examples(cls) -> list[Transform]:
        """Loose, and tight."""
        return [cls(), cls(0.1)]
