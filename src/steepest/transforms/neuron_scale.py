"""NorMuon: rows divided by the root of their averaged squares, at the same total length."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.transforms.base import Context, State, Transform, as_matrix


@dataclasses.dataclass(frozen=True)
class NeuronScale(Transform):
    """Row i of h over sqrt(v_i), v_i the average over steps of the mean square of its entries; then the whole as long
    as h was.

    After orthogonalisation the rows of a step, one to each output neuron, have different lengths; this evens them out
    with one number of state to a row. The average starts at zero and is not corrected for that, which the restored
    length makes up for.

    Li, Liu, Liang, Chen and Zhao 2025, "NorMuon" (2510.05491), algorithm 1. There the length becomes 0.2 sqrt(m n);
    here that of h, as in the authors' code, so that `ShapeScale` means what it does for Muon.
    """

    beta: float = 0.95
    eps: float = 1e-10

    positive: ClassVar[tuple[str, ...]] = ("second",)

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0, 1, open_high=True)
        check_range("eps", self.eps)

    def init(self, h: Tensor, ctx: Context) -> State:
        """Zero squares, one to a row."""
        return {"second": torch.zeros_like(as_matrix(h, ctx.ndim)[..., 0].real)}

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The evened block."""
        x = as_matrix(h, ctx.ndim)
        v = state["second"].lerp_((x.conj() * x).real.mean(-1), 1 - self.beta)
        even = x / (v.sqrt() + self.eps).unsqueeze(-1)
        length, now = (torch.linalg.vector_norm(t, dim=(-2, -1), keepdim=True) for t in (x, even))
        return (even * (length / (now + self.eps))).reshape(h.shape)

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published."""
        return [cls()]
