"""AuON's scaling."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.norms.base import divide
from steepest.transforms.base import Context, State, Transform, as_matrix


@dataclasses.dataclass(frozen=True)
class CoshScale(Transform):
    """h / r, r the root mean square of cosh(gamma h / |h|_F) over the entries.

    What that amounts to: the entries of h / |h|_F have the mean square 1 / (m n), so r = 1 + gamma^2 / (2 m n) to
    leading order, between 1 and cosh(gamma) always; 1.000001 for a 1024 x 1024 matrix. It neither normalises nor
    orthogonalises: behind momentum it is momentum alone, but for a factor that only tiny matrices notice.

    Maity 2025, "AuON" (2509.24320), in the form of the author's code; the paper divides by |h|_F as well, which the
    code does not.
    """

    gamma: float = 1.5

    def __post_init__(self) -> None:
        check_range("gamma", self.gamma)

    def update(self, h: Tensor, state: State, ctx: Context) -> Tensor:
        """The scaled block; the absolute values of complex entries count."""
        x = as_matrix(h, ctx.ndim)
        unit = divide(x, torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)).abs()
        r = (self.gamma * unit).cosh().square().mean((-2, -1), keepdim=True).sqrt()
        return (x / (r + 1e-8)).reshape(h.shape)

    @classmethod
    def examples(cls) -> list[Transform]:
        """As published."""
        return [cls()]
