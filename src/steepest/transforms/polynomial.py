"""Preconditioning by symmetric polynomials of row and column statistics, or of a matrix that is known."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.symmetric_polynomials import symmetric_preconditioner, symmetric_preconditioner_diagonal
from steepest.spec import tensor_field
from steepest.transforms.base import Context, State, Transform, as_matrix


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PolynomialPrecondition(Transform):
    """P(L) h P(R), with L the average of h h^H, R that of h^H h and P the symmetric polynomial of `degree`: without a
    factorisation it cuts their largest eigenvalues, one with each degree.

    P is scaled so that tr(L P(L)) = tr(L) at every degree: of gradients with the statistic L, <h, P(L) h> is |h|^2 on
    average, and where L is the curvature, a learning rate below 2 / tr(L) is stable at every degree. Degree 0 is the
    identity, the largest one a multiple of the inverse; along directions with a small eigenvalue the step grows like
    the inverse does, which `eps` bounds.

    Args:
        degree: how many eigenvalues it cuts; the number of rows (columns) less one, at most.
        beta: of the averages.
        eps: added to the statistics' diagonal, relative to the mean of it. To a `matrix`, too: 0 leaves it as it is.
        every: the polynomials are computed anew at the first and then at every such step.
        max_side: the statistics of a longer side are kept as their diagonal alone.
        matrix: the curvature `(n, n)`, where it is known, as A^H A of a linear model's data. No statistics are then
            kept, and the step is P(matrix) h or h P(matrix). Nested lists become a tensor.
        side: "left" or "right": which side of h `matrix` acts on; of a `torch.nn.Linear`, data are on the right.

    Doikov and Rodomanov 2023, "Polynomial preconditioning for gradient methods" (2301.13194), where the matrix is
    known; statistics in its place, on both sides as in `Precondition`, are ours, and so is the scale. As an optimiser:

    >>> from steepest.transforms import Momentum, PolynomialPrecondition
    >>> layer, data = torch.nn.Linear(3, 2, bias=False), torch.randn(20, 3)
    >>> known = PolynomialPrecondition(1, eps=0.0, matrix=data.T @ data / 20, side="right")
    >>> optimizer = Composed(layer.parameters(), [Momentum(0.9), known], lr=0.1)
    >>> other = Composed(layer.parameters(), [PolynomialPrecondition(2), Momentum(0.9)], lr=0.1)
    """

    degree: int = 2
    beta: float = 0.95
    eps: float = 1e-3
    every: int = 1
    max_side: int = 2048
    matrix: Tensor | None = None
    side: str = "left"

    def __post_init__(self) -> None:
        check_range("degree", self.degree)
        check_range("beta", self.beta, 0, 1, open_high=True)
        check_range("eps", self.eps)
        check_range("every", self.every, 1)
        if self.side not in ("left", "right"):
            raise ValueError(f"side: unknown {self.side!r}, expected left or right")
        if (b := tensor_field(self, "matrix")) is not None:
            if b.ndim != 2 or b.shape[0] != b.shape[1]:
                raise ValueError(f"matrix: expected one square matrix, got shape {tuple(b.shape)}")
            if not bool((b - b.mH).abs().max() <= 1e-5 * b.abs().max()):  # written so that NaN fails
                raise ValueError("matrix: expected a symmetric one with finite entries; take (b + b.mT) / 2")
            object.__setattr__(self, "_known", self._polynomial(b.detach(), matrix=True))

    def init(self, h: Tensor, ctx: Context) -> State:
        """Zero statistics; polynomials before their first computation."""
        if self.matrix is not None:
            return {}
        *batch, m, n = as_matrix(h, ctx.ndim).shape
        state: State = {}
        for key, side in (("left", m), ("right", n)):
            full = side <= self.max_side
            zero = h.new_zeros((*batch, side, side)) if full else h.real.new_zeros((*batch, side))
            state |= {key: zero, f"{key}_polynomial": zero.clone()}
        return state

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The preconditioned block."""
        x = as_matrix(h, ctx.ndim)
        if self.matrix is not None:
            return self._by_matrix(x).reshape(h.shape)
        for side, y in (("left", x), ("right", x.mH)):
            statistic, polynomial = state[side], state[f"{side}_polynomial"]
            full = statistic.ndim == x.ndim
            gram = y @ y.mH if full else (y.conj() * y).real.sum(-1)
            statistic.mul_(self.beta).add_(gram, alpha=1 - self.beta)
            if (ctx.step - 1) % self.every == 0:
                polynomial.copy_(self._polynomial(statistic, matrix=full))
        return _times(state["right_polynomial"], _times(state["left_polynomial"], x).mH).mH.reshape(h.shape)

    def _by_matrix(self, x: Tensor) -> Tensor:
        p: Tensor = self.__dict__["_known"].to(x)
        rows = x.shape[-2 if self.side == "left" else -1]
        if rows != len(p):
            raise ValueError(
                f"matrix: is {len(p)} x {len(p)}, and the {self.side} side of a block of shape {tuple(x.shape)} has "
                f"length {rows}; give that group of parameters alone the transform, or the other side"
            )
        return p @ x if self.side == "left" else x @ p

    def _polynomial(self, statistic: Tensor, *, matrix: bool) -> Tensor:
        if not matrix:
            shift = self.eps * statistic.mean(-1, keepdim=True)
            return symmetric_preconditioner_diagonal(statistic + shift, self.degree)
        shift = self.eps * statistic.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
        eye = torch.eye(statistic.shape[-1], dtype=statistic.dtype, device=statistic.device)
        return symmetric_preconditioner(statistic + shift * eye, self.degree)

    @classmethod
    def examples(cls) -> list[Transform]:
        """Degrees 2 and 1; one long side; polynomials every third step."""
        return [cls(eps=0.1), cls(1, 0.5, max_side=2), cls(3, eps=0.1, every=3)]


def _times(p: Tensor, x: Tensor) -> Tensor:
    return p @ x if p.ndim == x.ndim else p.unsqueeze(-1) * x
