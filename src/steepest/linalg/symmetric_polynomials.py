"""Preconditioners whose eigenvalues are elementary symmetric polynomials."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.linalg.precision import double

RESOLVED = 1e-6
"""Relative error up to which a polynomial counts as computed."""


def symmetric_preconditioner(b: Tensor, degree: int) -> Tensor:
    """P of the symmetric (Hermitian) positive semidefinite B `(*b, n, n)`, with tr(B P) = tr(B), `(*b, n, n)`.

    On the eigenvector of B's i-th eigenvalue, P is a multiple of the elementary symmetric polynomial of the given
    degree in all the other eigenvalues: of degree 0 the identity, of degree n - 1 of B^-1, and between them what cuts
    the `degree` largest eigenvalues down to the next one where there are gaps between them. The condition number of B P
    is lambda_1 e(without lambda_1) / (lambda_n e(without lambda_n)).

    By P_t = I - t B P_(t-1) / tr(B P_(t-1)), P_0 = I, which is Faddeev and LeVerrier's recursion divided by the sum of
    principal minors at each degree, so that nothing depends on B's scale: eigenvalues are between 0 and 1. Each degree
    loses the digits of tr(B) / tr(B P); in float64, and where its error would pass 1e-6, the degree before is kept,
    so that degrees beyond the rank of B change nothing. `degree` is at most n - 1; B = 0 gives the identity.

    Doikov and Rodomanov 2023, "Polynomial preconditioning for gradient methods" (2301.13194), with another multiple.
    """
    return _preconditioner(double(b), degree, matrix=True).to(b.dtype)


def symmetric_preconditioner_diagonal(b: Tensor, degree: int) -> Tensor:
    """The diagonal `(*b, n)` of that of a diagonal matrix, which is given by its own."""
    return _preconditioner(double(b), degree, matrix=False).to(b.dtype)


def _preconditioner(b: Tensor, degree: int, *, matrix: bool) -> Tensor:
    n, eps = b.shape[-1], torch.finfo(b.dtype).eps
    one = torch.eye(n, dtype=b.dtype, device=b.device) if matrix else b.new_ones(n)
    whole = _trace(b, matrix)
    b = b / torch.where(whole > 0, whole, 1)
    p, bp = one.expand_as(b), b
    trace, error, going = torch.ones_like(whole), eps * torch.ones_like(whole), whole > 0
    for t in range(1, min(degree, n - 1) + 1):
        p_next = one - bp * (t / trace)
        bp_next = b @ p_next if matrix else b * p_next
        error = error * (t / trace)
        trace_next = _trace(bp_next, matrix)
        going = going & (error <= RESOLVED * trace_next)
        p, bp = torch.where(going, p_next, p), torch.where(going, bp_next, bp)
        trace = torch.where(going, trace_next, trace)
    return p / trace


def _trace(b: Tensor, matrix: bool) -> Tensor:
    """The trace, shaped to divide b."""
    if matrix:
        return b.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None]
    return b.sum(-1, keepdim=True)
