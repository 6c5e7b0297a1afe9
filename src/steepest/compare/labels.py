"""Names at the ends of lines, moved apart so that none hides another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

FONT = 9
"""Size in points."""


def end_labels(axes: Any, ends: Sequence[tuple[float, float, str, str]], height: float) -> None:
    """Write each line's name to the right of a picture of `height` inches, beside its end `(x, y, name, color)`."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    wanted = np.array([(y - low) / (high - low) for _, y, _, _ in ends])
    places = apart(wanted.clip(0, 1), gap=1.3 * FONT / 72 / (height - 1.0))
    for (x, y, name, color), place in zip(ends, places, strict=True):
        text = {"xycoords": "axes fraction", "textcoords": "axes fraction", "annotation_clip": False}
        axes.annotate(name, (1.045, place), (1.045, place), color=color, fontsize=FONT, va="center", **text)
        start = (min(x, right), min(y, high))
        line = {"arrowstyle": "-", "color": color, "lw": 0.6, "alpha": 0.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", start, (1.04, place), textcoords="axes fraction", annotation_clip=False, arrowprops=line)


def apart(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Places in [0, 1] that keep their order and are at least `gap` apart (as far as there is room), nearest to those
    wanted: least squares under an order, by pooling neighbours that violate it."""
    order = np.argsort(wanted, kind="stable")
    gap = min(gap, 1 / max(1, len(wanted) - 1))
    offsets = gap * np.arange(len(wanted))
    pools: list[list[float]] = []
    for value in wanted[order] - offsets:
        pools.append([float(value)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    placed = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    placed = placed.clip(0, 1 - offsets[-1]) + offsets
    out = np.empty_like(placed)
    out[order] = placed
    return out
