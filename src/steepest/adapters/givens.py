"""Rotations of planes, level by level: n - 1 angles turn n coordinates."""

from __future__ import annotations

import torch
from torch import Tensor


def levels(n: int) -> list[tuple[int, int]]:
    """The stride s of each level and its number of planes (2 j s, 2 j s + s); n - 1 planes in all."""
    found, s = [], 1
    while s < n:
        found.append((s, (n + s - 1) // (2 * s)))
        s *= 2
    return found


def givens(theta: Tensor, x: Tensor, *, inverse: bool = False) -> Tensor:
    """Rows of x `(*b, m, n)` turned by the angles theta `(*b, n - 1)`: G_L ... G_2 G_1 x for each row, level s = 1
    first; with `inverse` turned back."""
    cosines, sines = theta.cos().unsqueeze(-2), theta.sin().unsqueeze(-2)
    return turn_planes(_each(cosines, -sines, sines, cosines, x.shape[-1]), x, inverse=inverse)


def turn_planes(blocks: list[Tensor], x: Tensor, *, inverse: bool = False) -> Tensor:
    """Rows of x `(*b, m, n)` through the 2 x 2 matrices of each level, `(4, *b, 1, planes)` as entries 00, 01, 10, 11;
    with `inverse` through their transposes in the opposite order."""
    steps = list(zip(levels(x.shape[-1]), blocks, strict=True))
    for (s, planes), (a, b, c, d) in reversed(steps) if inverse else steps:
        p, q = x[..., :: 2 * s][..., :planes], x[..., s :: 2 * s]
        if inverse:
            b, c = c, b
        new = x.clone()
        new[..., :: 2 * s][..., :planes] = a * p + b * q
        new[..., s :: 2 * s] = c * p + d * q
        x = new
    return x


def _each(a: Tensor, b: Tensor, c: Tensor, d: Tensor, n: int) -> list[Tensor]:
    """The entries of all planes as one tensor for each level."""
    sizes = [planes for _, planes in levels(n)]
    entries = torch.stack(torch.broadcast_tensors(a, b, c, d))
    return list(entries.split(sizes, dim=-1))
