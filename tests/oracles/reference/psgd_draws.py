"""Random numbers that PSGD's official code and ours are both given."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor


def numbers(step: int, call: int, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers of one call in one step, both counted from 0; before the first step, step -1. A vector's are those
    of a column."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{step} {call} {math.prod(shape)}".encode()))
    return torch.empty(shape, dtype=torch.float64).normal_(generator=generator)  # torch.randn may be replaced by this


def fraction(step: int) -> float:
    """What is drawn between 0 and 1: turn by turn below and above a half, never rare."""
    return 0.25 if step % 2 == 0 else 0.75
