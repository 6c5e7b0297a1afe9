"""Which learning rates an optimiser tries: a few around its default, and more while the best lies at the edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sweep:
    """Learning rates `default * factor**k` for whole numbers k.

    Args:
        default: the rate of k = 0.
        factor: between neighbours.
        points: how many there are to begin with, around k = 0; 1 means no sweep.
        extend: how many may be added.
    """

    default: float
    factor: float
    points: int
    extend: int

    def lr(self, k: int) -> float:
        """The rate of a k, with three digits."""
        return float(f"{self.default * self.factor**k:.3g}") if k else self.default

    def following(self, losses: Mapping[int, float]) -> int | None:
        """The next k to try, given the losses of those tried (infinite where training diverged); None at the end."""
        below = self.points // 2
        for k in range(-below, self.points - below):
            if k not in losses:
                return k
        if len(losses) >= self.points + self.extend or not self.at_edge(losses):
            return None
        best = self.best(losses)
        return best - 1 if best == min(losses) else best + 1

    def best(self, losses: Mapping[int, float]) -> int:
        """The k with the lowest loss; of equals, as where all have diverged, the smallest."""
        return min(losses, key=lambda k: (losses[k], k))

    def at_edge(self, losses: Mapping[int, float]) -> bool:
        """Whether the best has a neighbour that was not tried, so that a better one may lie beyond."""
        return self.points > 1 and self.best(losses) in (min(losses), max(losses))
