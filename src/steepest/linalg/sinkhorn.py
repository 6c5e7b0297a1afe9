"""Positive matrices scaled to given row and column sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SumSolver = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
SWEEPS = 500
"""Most alternating sweeps before Newton's steps."""
NEWTON = 6
"""Newton steps after them: from a relative error of 1e-2 four reach round-off."""


def sinkhorn(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """exp(logits + a_i + b_j), `(*b, m, n)`, of which a and b make the rows sum to `rows`, the columns to `columns`.

    Alternating scaling (Sinkhorn 1964) until the sums are right to a hundredth, then Newton's method on a and b. The
    result is differentiable twice with respect to all arguments: its last two Newton steps, with a constant Hessian,
    change no value but the dependence on them.
    """
    with torch.no_grad():
        a, b = _alternate(logits, rows.log(), columns.log())
        for _ in range(NEWTON):
            y = torch.exp(logits + a + b)
            a, b = _newton(a, b, y, rows, columns, sum_solver(y))
        solver = sum_solver(torch.exp(logits + a + b))
    for _ in range(2):
        a, b = _newton(a, b, torch.exp(logits + a + b), rows, columns, solver)
    return torch.exp(logits + a + b)


def _alternate(logits: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    b = torch.zeros_like(logits[..., :1, :])
    for sweep in range(SWEEPS):
        a = rows.unsqueeze(-1) - torch.logsumexp(logits + b, -1, keepdim=True)
        error = torch.logsumexp(logits + a + b, -2, keepdim=True) - columns.unsqueeze(-2)
        if sweep % 4 == 3 and error.abs().max() < 1e-2:
            break
        b = b - error
    return a, b


def _newton(a: Tensor, b: Tensor, y: Tensor, rows: Tensor, columns: Tensor, solver: SumSolver) -> tuple[Tensor, Tensor]:
    da, db = solver(rows - y.sum(-1), columns - y.sum(-2))
    return a + da.unsqueeze(-1), b + db.unsqueeze(-2)


def sum_solver(x: Tensor) -> SumSolver:
    """For positive x `(*b, m, n)`, the map from (r, c) to (a, b) with row sums r and column sums c of x_ij (a_i + b_j).

    r and c must have one sum. (a + t, b - t) solves it as well; the b of the solution has zero weighted sum.
    """
    p, q = x.sum(-1), x.sum(-2)
    scaled = x / p.unsqueeze(-1)
    # the Schur complement of diag(p) is semidefinite with kernel (1, ..., 1), which the last term fills
    schur = torch.diag_embed(q) - x.mT @ scaled + q.unsqueeze(-1) * q.unsqueeze(-2) / q.sum(-1)[..., None, None]
    lower, _ = torch.linalg.cholesky_ex(schur)

    def solve(r: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        right = c - (scaled.mT @ r.unsqueeze(-1)).squeeze(-1)
        b = torch.cholesky_solve(right.unsqueeze(-1), lower).squeeze(-1)
        return (r - (x @ b.unsqueeze(-1)).squeeze(-1)) / p, b

    return solve
