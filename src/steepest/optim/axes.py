"""Which axes of a parameter form its matrix."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def to_matrix(p: Tensor, pattern: str | None, sizes: dict[str, int]) -> Tensor:
    """p as `(*b, m, n)`, by an einops pattern: "o i h w -> o (i h w)" for a convolution, "(s o) i -> s o i" with
    sizes {"s": 3} for fused query, key and value weights. Without a pattern p itself."""
    return p if pattern is None else rearrange(p, pattern, **sizes)


def from_matrix(x: Tensor, pattern: str | None, like: Tensor) -> Tensor:
    """The inverse of `to_matrix`, for a parameter of the shape of `like`."""
    if pattern is None:
        return x
    left, right = (side.strip() for side in pattern.split("->"))
    return rearrange(x, f"{right} -> {left}", **_plain_axes(left, like))


def _plain_axes(side: str, like: Tensor) -> dict[str, int]:
    """Lengths of the axes that stand alone on one side of a pattern."""
    names, depth = [], 0
    for token in side.replace("(", " ( ").replace(")", " ) ").split():
        depth += (token == "(") - (token == ")")
        if token == ")" and depth == 0:
            names.append("")
        elif depth == 0:
            names.append(token)
    return {name: n for name, n in zip(names, like.shape, strict=True) if name.isidentifier()}


def pattern_error(shape: tuple[int, ...], pattern: str, sizes: dict[str, int]) -> str:
    """What is wrong with a pattern for a parameter of this shape; empty when nothing is."""
    p = torch.empty(shape, device="meta")
    try:
        x = to_matrix(p, pattern, sizes)
        back = from_matrix(x, pattern, p)
    except Exception as error:  # einops raises its own error class, with the pattern in the text
        return f"matrix: {pattern!r} does not fit shape {tuple(shape)}: {str(error).strip().splitlines()[-1].strip()}"
    if x.ndim < 2 or back.shape != p.shape:
        return f"matrix: {pattern!r} must turn shape {tuple(shape)} into (..., m, n), got {tuple(x.shape)}"
    return ""
