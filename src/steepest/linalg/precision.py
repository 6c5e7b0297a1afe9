"""Which dtype a computation runs in."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """x in the dtype in which it is computed with: float32 for the half precisions, its own otherwise."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def double(x: Tensor) -> Tensor:
    """x in float64, or in float32 on a device that has no more (Apple's MPS)."""
    return x.float() if x.device.type == "mps" else x.double()
