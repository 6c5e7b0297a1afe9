"""Tensors of which this process holds a part only, as under FSDP2."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(t: Any) -> bool:
    """Whether it is one."""
    return hasattr(t, "full_tensor")


def whole(t: Tensor) -> Tensor:
    """It, gathered from all processes; others as they are."""
    gathered: Tensor = getattr(t, "full_tensor", lambda: t)()
    return gathered
