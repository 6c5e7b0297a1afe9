"""Time as it is spent by a device that works ahead of the program."""

from __future__ import annotations

import time

import torch


def seconds(device: torch.device) -> float:
    """Seconds of a steady clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
