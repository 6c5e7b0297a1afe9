"""Assertions that say which law is broken."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest.manifolds.tensors import as_tuple


def distance(a: Any, b: Any) -> float:
    """Largest difference of entries, relative to the larger of 1 and the largest entry."""
    pairs = list(zip(as_tuple(a), as_tuple(b), strict=True))
    for s, t in pairs:
        assert s.shape == t.shape, f"shapes differ: {tuple(s.shape)} and {tuple(t.shape)}"
    scale = max([1.0, *(t.abs().max().item() for _, t in pairs if t.numel())])
    gaps = [(_double(s) - _double(t)).abs().max().item() for s, t in pairs if t.numel()]
    return max((math.inf if math.isnan(g) else g for g in gaps), default=0.0) / scale


def assert_close(a: Any, b: Any, law: str, tolerance: float) -> None:
    """a and b agree to the tolerance."""
    gap = distance(a, b)
    assert gap <= tolerance, f"{law}: differs by {gap:.2g}, allowed {tolerance:.2g}"


def assert_slope(error: Callable[[float], float], order: float, law: str, largest: float = 1e-2) -> None:
    """error(t) falls at least like t^order as t falls, read off two points above round-off."""
    coarse, fine = error(largest), error(largest / 8)
    floor = 1e-13
    if fine <= floor:
        return
    slope = math.log(coarse / fine) / math.log(8)
    assert slope >= order - 0.15, f"{law}: falls with slope {slope:.2f}, expected {order} ({coarse:.1e} to {fine:.1e})"


def add(x: Any, v: Any, t: float = 1.0) -> Any:
    """x + t v, tensor by tensor."""
    parts = [a + t * b for a, b in zip(as_tuple(x), as_tuple(v), strict=True)]
    return tuple(parts) if isinstance(x, tuple) else parts[0]


def scale(v: Any, t: float) -> Any:
    """t v, tensor by tensor."""
    return tuple(t * a for a in v) if isinstance(v, tuple) else t * v


def dot(a: Any, b: Any) -> Tensor:
    """Sum of all products of entries; of complex ones the real part, with the first conjugated."""
    return torch.stack([(s.conj() * t).real.sum() for s, t in zip(as_tuple(a), as_tuple(b), strict=True)]).sum()


def norm(a: Any) -> float:
    """Root of the sum of all squared entries."""
    return dot(a, a).sqrt().item()


def refuses_complex(call: Callable[[], Any]) -> bool:
    """Whether a call on complex tensors says, by a TypeError or a ValueError, that it is not made for them."""
    try:
        call()
    except (TypeError, ValueError) as error:
        if "complex" in str(error):
            return True
        raise
    return False


def _double(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)
