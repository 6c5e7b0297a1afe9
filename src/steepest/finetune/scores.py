"""What a method reaches on the held-out rows, and how far chance alone could have moved it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

DRAWS = 2000
"""Bootstrap samples."""


@dataclass(frozen=True)
class Scores:
    """Result of one method on the held-out rows; lists are in the order of those rows."""

    metrics: dict[str, float]
    """By name; the first is the headline, the mean of `each`."""
    each: list[float]
    """The headline metric of each row: the reciprocal rank of the right answer, or 1 for a right label."""
    answers: list[str]
    """The text found first, or the predicted label."""
    correct: list[bool]

    @property
    def headline(self) -> float:
        """The first of the metrics."""
        return next(iter(self.metrics.values()))

    def interval(self) -> tuple[float, float]:
        """95% bootstrap interval of the headline metric over the rows."""
        return _interval(np.array(self.each))

    def gain(self, other: Scores) -> tuple[float, float, float]:
        """Headline metric minus that of `other`, and its 95% interval, from the differences row by row."""
        difference = np.array(self.each) - np.array(other.each)
        return (float(difference.mean()), *_interval(difference))

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def _interval(values: np.ndarray) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    means = values[generator.integers(len(values), size=(DRAWS, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
