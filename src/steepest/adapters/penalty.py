"""What adapters add to the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def penalty(model: nn.Module) -> Tensor | float:
    """The sum of what the active adapters in `model` add to the loss: HRA's regulariser, say; 0.0 where none adds any.

    A training loop of your own adds it; with `transformers.Trainer` do so in `compute_loss`.

    >>> from peft import get_peft_model
    >>> from steepest.adapters import HRAConfig, penalty
    >>> config = HRAConfig(r=2, regularizer=0.5, target_modules=["0"])
    >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config)
    >>> round(penalty(model).item(), 3)  # two equal vectors: 0.5 sqrt(2)
    0.707
    """
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "get_base_layer") and hasattr(m, "penalty")]
    found = [t for t in (layer.penalty() for layer in layers) if t is not None]
    return torch.stack([t.to(found[0].device) for t in found]).sum() if found else 0.0  # layers of several devices
