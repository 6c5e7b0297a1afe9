"""Orthonormal bases of what a tall matrix spans."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.linalg.precision import double, is_double, widen
from steepest.linalg.qr import triangular_inverse
from steepest.linalg.shapes import require_matrix

WORST_CONDITION = 1e4
"""Of a matrix with columns of length one whose Gram matrix is factored in float64: its square times 2e-16 is what is
lost of orthonormality, which stays below the rounding of float32."""


def orthonormal_basis(y: Tensor) -> Tensor:
    """Orthonormal columns `(*b, n, r)` with the span of those of y `(*b, n, r)`, n >= r, any y; where y lacks rank,
    with other columns for the missing ones.

    By Cholesky-QR of the columns at length one, in float64, where y is single and well-conditioned: a few products,
    several times faster than Householder's reflections, which do the rest. (The last product in float32 would lose the
    condition times 1e-7.) It looks at the result, and so synchronises.
    """
    require_matrix(y, "y")
    x = widen(y)
    if is_double(x) or x.device.type == "mps":
        return torch.linalg.qr(x)[0].to(y.dtype)
    wide = double(x)
    lengths = torch.linalg.vector_norm(wide, dim=-2, keepdim=True)
    wide = wide / torch.where(lengths > 0, lengths, 1)
    lower, info = torch.linalg.cholesky_ex(wide.mH @ wide)
    pivots = lower.diagonal(dim1=-2, dim2=-1).real
    if info.any() or not (pivots > 1 / WORST_CONDITION).all():
        return torch.linalg.qr(wide.to(x.dtype))[0].to(y.dtype)
    return (wide @ triangular_inverse(lower).mH).to(y.dtype)
