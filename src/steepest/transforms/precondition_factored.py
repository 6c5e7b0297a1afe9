"""Shampoo whose statistics are kept as eigenvectors and eigenvalues."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.basis import orthonormal_basis
from steepest.linalg.statistics import finite
from steepest.transforms.base import Context, State, Transform, as_matrix
from steepest.transforms.precondition import is_due


@dataclasses.dataclass(frozen=True)
class PreconditionFactored(Transform):
    """L^-1/4 h R^-1/4, with the average L of h h^H kept as V diag(w) V^H, and R's likewise: the form of Shampoo that
    bears few bits, for an error in V leaves L positive definite, where one in L itself does not.

    A new h enters by A = beta V diag(w) V^H + (1 - beta) h h^H and one step of the QR algorithm from where V was,
    V <- qr(A V) and w <- diag(V^H A V): products and one orthogonalisation, no eigendecomposition. `Quantized` around
    it keeps V and the roots in 4 bits; w and the roots' diagonals, few and far apart in size, stay as they are. What
    the rounding does to V is mended by Bjorck's iteration V <- V (3 I - V^H V) / 2 before V is used.

    Args:
        beta: factor of the average.
        eps: added to w, relative to the largest.
        every: steps from one h that enters to the next.
        roots_every: steps from one computation of the roots to the next.
        rectify: Bjorck's iterations before h enters, and before a root is computed.
        max_side: a longer side is left alone.
        spread: do both for different points at different steps.

    Wang, Zhou, Li and Huang 2024, "4-bit Shampoo for memory-efficient network training" (2405.18144), algorithms 1 to
    3. There both are due from step `every` and `roots_every` on, here at the first as well; and roots that are due
    together with h are computed from V before it is rounded.
    """

    beta: float = 0.95
    eps: float = 1e-6
    every: int = 100
    roots_every: int = 500
    rectify: tuple[int, int] = (1, 4)
    max_side: int = 2048
    spread: bool = True

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0, 1, open_high=True)
        check_range("eps", self.eps)
        check_range("every", self.every, 1)
        check_range("roots_every", self.roots_every, 1)
        for i, count in enumerate(self.rectify):
            check_range(f"rectify[{i}]", count)

    def init(self, h: Tensor, ctx: Context) -> State:
        """Identities, and zero for w; eigenvectors are rows, so that a run of numbers with one scale is part of one."""
        x = as_matrix(h, ctx.ndim)
        state: State = {}
        for side, y in self._sides(x):
            *batch, n = y.shape[:-1]
            zeros = h.new_zeros((*batch, n, n))
            state[f"{side}_vectors"] = zeros + torch.eye(n, dtype=h.dtype, device=h.device)
            state[f"{side}_values"] = h.real.new_zeros((*batch, n))
            state[f"{side}_root"] = zeros
            state[f"{side}_root_diagonal"] = h.real.new_ones((*batch, n))
        return state

    def idle(self, ctx: Context) -> bool:
        """Between the steps that are due."""
        return not any(is_due(ctx, every, spread=self.spread) for every in (self.every, self.roots_every))

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The preconditioned block."""
        x = as_matrix(h, ctx.ndim)
        for side, y in self._sides(x):
            if is_due(ctx, self.every, spread=self.spread):
                self._enter(finite(y), side, state)
            if is_due(ctx, self.roots_every, spread=self.spread):
                self._find_root(side, state)
        for side, _ in self._sides(x):
            root, diagonal = state[f"{side}_root"], state[f"{side}_root_diagonal"]
            x = root @ x + diagonal.unsqueeze(-1) * x if side == "left" else x @ root + x * diagonal.unsqueeze(-2)
        return x.reshape(h.shape)

    def _sides(self, x: Tensor) -> list[tuple[str, Tensor]]:
        """Those that are not too long, and x with such a side in front."""
        return [(side, y) for side, y in (("left", x), ("right", x.mH)) if y.shape[-2] <= self.max_side]

    def _enter(self, y: Tensor, side: str, state: State) -> None:
        """One step of the QR algorithm for the average with y y^H in it."""
        vectors, values = state[f"{side}_vectors"], state[f"{side}_values"]
        v = rectified(vectors.mH, self.rectify[0])
        av = self.beta * v * values.unsqueeze(-2) + (1 - self.beta) * y @ (y.mH @ v)
        q = orthonormal_basis(torch.where((av == 0).all(-2, keepdim=True), v, av))
        turn, low = v.mH @ q, y.mH @ q
        kept = ((turn.conj() * turn).real * values.unsqueeze(-1)).sum(-2)
        values.copy_(self.beta * kept + (1 - self.beta) * (low.conj() * low).real.sum(-2))
        vectors.copy_(q.mH)

    def _find_root(self, side: str, state: State) -> None:
        """V (w + eps max w)^-1/4 V^H, its diagonal apart; the identity for w = 0."""
        values = state[f"{side}_values"]
        v = rectified(state[f"{side}_vectors"].mH, self.rectify[1])
        largest = values.amax(-1, keepdim=True)
        roots = (values.clamp_min(0) + torch.where(largest > 0, self.eps * largest, 1)) ** -0.25
        root = (v * roots.unsqueeze(-2)) @ v.mH
        diagonal = root.diagonal(dim1=-2, dim2=-1)
        state[f"{side}_root_diagonal"].copy_(diagonal.real)
        state[f"{side}_root"].copy_(root - torch.diag_embed(diagonal))

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published; every second step, with one side too long."""
        return [cls(), cls(0.9, every=2, roots_every=4, max_side=4)]


def rectified(v: Tensor, count: int) -> Tensor:
    """v `(*b, n, n)` nearer to orthonormal columns, by so many iterations of Bjorck and Bowie 1971; quadratically, for
    singular values below sqrt(3)."""
    for _ in range(count):
        v = 1.5 * v - 0.5 * v @ (v.mH @ v)
    return v
