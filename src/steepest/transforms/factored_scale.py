"""Adafactor: entries divided by the root of a second moment of rank one."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform, as_matrix


@dataclasses.dataclass(frozen=True)
class FactoredScale(Transform):
    """h / max(sqrt(V), eps) with V_ij = r_i c_j / max(mean(r), eps), r and c the averages of the squared entries along
    the rows and along the columns of h `(*b, m, n)`: m + n numbers of state instead of m n.

    At step t both forget by the factor 1 - t^-decay, so that the first step sees the first gradient alone and no bias
    has to be corrected. V is the matrix of rank one that is closest to the averaged squares in the generalised
    Kullback-Leibler divergence. Vectors and matrices with a side of one keep the full average as V, which of the latter
    is the same but where mean(r) < eps. Of a complex h the squares are |h|^2, so that phases do not matter.

    Args:
        decay: exponent of the averages' factor; 0 keeps the last gradient only.
        eps: where it stands, torch.optim.Adafactor has it; None, that library's default, is the precision of h's dtype.

    Shazeer and Stern 2018 (1804.04235), algorithm 4. There eps is added to the squares. Blocks of three axes and more
    are matrices whose rows the first axis counts; torch factors the last two axes of each slice.
    """

    decay: float = 0.8
    eps: float | None = 1e-30

    positive: ClassVar[tuple[str, ...]] = ("rows", "columns", "second")

    def __post_init__(self) -> None:
        check_range("decay", self.decay)
        check_range("eps", self.eps or 0.0)

    def init(self, h: Tensor, ctx: Context) -> State:
        """Zero averages."""
        x = as_matrix(h, ctx.ndim).real
        if 1 in x.shape[-2:]:
            return {"second": torch.zeros_like(h.real)}
        return {"rows": torch.zeros_like(x[..., 0]), "columns": torch.zeros_like(x[..., 0, :])}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """Adafactor's direction, before it is clipped."""
        info = torch.finfo(h.dtype)
        eps = info.eps if self.eps is None else max(self.eps, info.tiny)  # so that 0 / 0 is 0
        square = (h.conj() * h).real
        if "second" in state:
            return h / self._averaged(state["second"], square, ctx).sqrt().clamp_min(eps)
        x = as_matrix(square, ctx.ndim)
        r, c = (self._averaged(state[key], x.mean(dim), ctx) for key, dim in (("rows", -1), ("columns", -2)))
        r = r / r.mean(-1, keepdim=True).clamp_min(eps)
        root = r.sqrt().unsqueeze(-1) * c.sqrt().unsqueeze(-2)
        return h / root.clamp_(min=eps).reshape(h.shape)

    def _averaged(self, average: Tensor, new: Tensor, ctx: Context) -> Tensor:
        """The average, with `new` taken in."""
        return average.add_((new - average) * ctx.step**-self.decay)

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published, and as in torch."""
        return [cls(), cls(0.5, eps=None)]
