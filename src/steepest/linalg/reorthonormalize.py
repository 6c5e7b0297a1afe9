"""Repair of columns that rounding has made less than orthonormal."""

from __future__ import annotations

from torch import Tensor

from steepest.linalg.products import add_product
from steepest.linalg.shapes import require_matrix


def reorthonormalize(y: Tensor) -> Tensor:
    """Y (3 I - Y^H Y) / 2: one Newton-Schulz step from Y `(*b, n, p)`, n >= p, towards its polar factor.

    It squares a defect |Y^H Y - I| that is already small, and is the identity to first order, in value and in its
    derivatives, where there is none (Higham 2008, Functions of Matrices, chapter 8).
    """
    require_matrix(y, "y")
    return add_product(1.5 * y, y, y.mH @ y, -0.5)
