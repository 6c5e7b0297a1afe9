"""Repair of columns that rounding has made less than orthonormal."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.linalg.shapes import require_matrix


def reorthonormalize(y: Tensor) -> Tensor:
    """Y (3 I - Y^H Y) / 2: one Newton-Schulz step from Y `(*b, n, p)`, n >= p, towards its polar factor.

    It squares a defect |Y^H Y - I| that is already small, and is the identity to first order, in value and in its
    derivatives, where there is none (Higham 2008, Functions of Matrices, chapter 8).
    """
    require_matrix(y, "y")
    identity = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
    return y + 0.5 * (y @ (identity - y.mH @ y))
