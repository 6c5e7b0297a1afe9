"""How large a subspace is."""

from __future__ import annotations

import math

from steepest.checks import check_range


def check_rank(rank: float) -> None:
    """Refuse what is neither a whole number nor a share up to 1.0."""
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        raise TypeError(f"rank: expected an int or a float, got {rank!r}")
    check_range("rank", rank, open_low=True)
    if rank > 1 and rank != int(rank):
        raise ValueError(f"rank: got {rank}, expected a whole number, or a fraction of the shorter side up to 1.0")


def rank_of(rank: float, shape: tuple[int, ...]) -> int:
    """The rank for matrices of this shape: an int as it is, a float up to 1.0 as a share of the shorter side, rounded
    up; at most the shorter side."""
    side = min(shape[-2:])
    share = isinstance(rank, float) and rank <= 1
    return min(math.ceil(rank * side) if share else int(rank), side)
