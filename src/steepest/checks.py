"""Errors for numbers out of range that teach."""

import math


def check_range(
    name: str,
    value: float,
    low: float = 0.0,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise a ValueError that names the argument unless value is a finite number in the interval from low to high."""
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (above and below and math.isfinite(value)):  # written so that NaN fails
        left, right = "(" if open_low else "[", ")" if open_high or high == math.inf else "]"
        raise ValueError(f"{name}: got {value!r}, expected a finite number in {left}{low:g}, {high:g}{right}")
