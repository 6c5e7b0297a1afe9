"""Conda: Adam whose second moment is taken along the momentum's singular vectors."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.eigen import eigh
from steepest.linalg.precision import double
from steepest.transforms.base import Context, State, Transform, as_matrix


@dataclasses.dataclass(frozen=True)
class SpectralScale(Transform):
    """Adam's division in another basis: m U / (sqrt(v) + eps), turned back, with U the momentum's singular vectors on
    its shorter side and v the average of the squared entries of h U.

    The momentum m stays in the coordinates' own basis, and follows the point; v belongs to directions in order of
    their singular values, and is kept as it is when U is computed anew. Where the momentum is still zero at the first
    step, U is a permutation until then, and the method Adam.

    Args:
        betas: factors of the averages.
        eps: added to the root of the second before its bias is corrected.
        every: U is computed anew at the first and then at every such step, as eigenvectors of the Gram matrix of m in
            float64, which is several times cheaper than an SVD.

    Wang et al. 2025, "Conda" (2509.24218), algorithm 1 and the authors' code.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    every: int = 2000

    carried: ClassVar[tuple[str, ...]] = ("first",)
    positive: ClassVar[tuple[str, ...]] = ("second",)

    def __post_init__(self) -> None:
        check_range("betas[0]", self.betas[0], 0, 1, open_high=True)
        check_range("betas[1]", self.betas[1], 0, 1, open_high=True)
        check_range("eps", self.eps)
        check_range("every", self.every, 1)

    def init(self, h: Tensor, ctx: Context) -> State:
        """Zero moments; a basis before its first computation."""
        x = as_matrix(h, ctx.ndim)
        k = min(x.shape[-2:])
        basis = x.new_zeros((*x.shape[:-2], k, k))
        return {"first": torch.zeros_like(h), "second": torch.zeros_like(h.real), "basis": basis}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """Conda's direction."""
        beta1, beta2 = self.betas
        m, g = (as_matrix(t, ctx.ndim) for t in (state["first"].lerp_(h, 1 - beta1), h))
        wide = m.shape[-2] < m.shape[-1]
        m, g = (m.mH, g.mH) if wide else (m, g)
        basis = state["basis"]
        if (ctx.step - 1) % self.every == 0:
            basis.copy_(_singular_vectors(m))
        turned = g @ basis
        square = (turned.conj() * turned).real
        v = state["second"].mul_(beta2).add_((square.mT if wide else square).reshape(h.shape), alpha=1 - beta2)
        root = as_matrix(v, ctx.ndim).sqrt() + self.eps
        out = (m @ basis / (root.mT if wide else root)) @ basis.mH
        correction = (1 - beta2**ctx.step) ** 0.5 / (1 - beta1**ctx.step)
        return ((out.mH if wide else out) * correction).reshape(h.shape)

    @classmethod
    def examples(cls) -> list[Transform]:
        """A basis for good, and one that is computed every second step."""
        return [cls(), cls((0.9, 0.99), every=2)]


def _singular_vectors(m: Tensor) -> Tensor:
    """Right singular vectors of a tall m, by singular values descending."""
    x = double(m)
    return eigh(x.mH @ x)[1].flip(-1).to(m.dtype)
