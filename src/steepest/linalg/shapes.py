"""Checks of shapes: errors that name the argument, what was wrong with it and what was expected."""

from torch import Tensor


def require_matrix(x: Tensor, name: str) -> None:
    """Raise a ValueError unless x is a matrix or a batch of matrices, `(*b, m, n)`."""
    if x.ndim < 2:
        raise ValueError(f"{name}: expected a matrix (*b, m, n), got a tensor of shape {tuple(x.shape)}")


def require_square(x: Tensor, name: str) -> None:
    """Raise a ValueError unless x is a square matrix or a batch of them, `(*b, n, n)`."""
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"{name}: expected a square matrix (*b, n, n), got a tensor of shape {tuple(x.shape)}")
