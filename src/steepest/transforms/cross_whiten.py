"""PSGD's X-shaped matrices: whitening with no matrix at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from steepest.transforms.base import Context, State, Transform, as_matrix
from steepest.transforms.whiten import Whiten, across, bounded


@dataclasses.dataclass(frozen=True)
class CrossWhiten(Whiten):
    """Q^H Q h with Q = diag(a) + antidiag(b), of the block's N entries as one vector: entry i is whitened together with
    entry N + 1 - i, and there are 2 N numbers of state and only entrywise operations. See `Whiten`.

    Such matrices are a group: a product of two is another, for on each pair of entries they are 2 x 2 matrices. The
    pairs mean nothing; that they are pairs takes the whitening beyond the diagonal.

    Args:
        lr, beta, damping, momentum, of, every, warmup, initial, seed: see `Whiten`. The authors' code has beta = 0, and
            damps by 2^-13 of the mean modulus, which is its older rule; here it is that of its newer preconditioners.

    Li 2022 (2211.04422), Pooladzandi and Li 2024 (2402.04553), "Xmat" of the authors' code.

    >>> from steepest.transforms import CrossWhiten
    >>> CrossWhiten(every=33, warmup=500).updates(10_000)
    1651
    """

    def _matrix(self, h: Tensor, ctx: Context) -> Tensor:
        return as_matrix(h, ctx.ndim).flatten(-2).unsqueeze(-1)

    def _start(self, x: Tensor) -> State:
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        return {"diagonal": one, "cross": zero, "smooth": x.real.new_zeros(x.shape[:-2])}

    def _fit(self, x: Tensor, noise: Tensor, v: Tensor | None, alive: Tensor, state: State, step: Any) -> None:
        a, b = state["diagonal"], state["cross"]
        v = noise if v is None else v
        flipped_a, flipped_b = a.flip(-2), b.flip(-2)
        y = a * x + b * x.flip(-2)  # Q x
        z = (flipped_a * v.conj() - flipped_b * v.flip(-2).conj()) / (a * flipped_a - b * flipped_b)
        z = z.conj()  # Q^-H v
        alive = bounded(alive, y, z)
        y2, z2 = ((t.conj() * t).real for t in (y, z))
        rate = across(self._rate((y2 + z2).amax((-2, -1)), alive, state["smooth"]))
        straight = (y2 - z2).mul_(rate)
        crossed = (y * y.flip(-2).conj() - z * z.flip(-2).conj()).mul_(rate)
        if x.shape[-2] % 2:
            crossed[..., x.shape[-2] // 2, :] = 0  # the entry in the middle is its own pair
        change_a, change_b = straight * a + crossed * flipped_b, straight * b + crossed * flipped_a
        a.sub_(change_a)
        b.sub_(change_b)

    def _apply(self, x: Tensor, state: State) -> Tensor:
        a, b = state["diagonal"], state["cross"]
        y = a * x + b * x.flip(-2)
        return a.conj() * y + (b.conj() * y).flip(-2)

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published in the newer code's terms; with momentum."""
        return [cls(), cls(beta=0.0, momentum=0.9, every=2)]
