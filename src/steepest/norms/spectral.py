"""The largest singular value."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.linalg import SCHEDULES, orthogonalize, polar
from steepest.norms.base import Norm


@dataclasses.dataclass(frozen=True)
class Spectral(Norm):
    """Largest singular value; its dual map is the polar factor, U V^H for g = U S V^H: Muon's orthogonalisation.

    Args:
        schedule: "polar_express", "keller_jordan", "quintic" or a tuple of coefficient triples: odd polynomials that
            bring all singular values near one (`steepest.linalg.orthogonalize` states how near); "exact" for the exact
            polar factor.
        steps: number of polynomials; None: four of "polar_express", five of any other.
        dtype: "bfloat16" to run the products in it; by default float32, or float64 for such input. Complex matrices
            take the complex dtype of that precision, and complex64 for "bfloat16", which has none.

    Bernstein and Newhouse 2024 (2409.20325), proposition 5.

    >>> g = torch.tensor([[3.0, 0.0], [0.0, 0.1]])
    >>> Spectral("exact").dual(g)
    tensor([[1., 0.],
            [0., 1.]])
    """

    schedule: str | tuple[tuple[float, float, float], ...] = "polar_express"
    steps: int | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.schedule, str) and self.schedule not in {"exact", *SCHEDULES}:
            raise ValueError(f"schedule: unknown {self.schedule!r}, expected exact, {', '.join(SCHEDULES)} or triples")
        if self.dtype not in (None, "bfloat16", "float32", "float64"):
            raise ValueError(f"dtype: unknown {self.dtype!r}, expected None, 'bfloat16', 'float32' or 'float64'")

    @property
    def exact(self) -> bool:
        """Only with the exact polar factor."""
        return self.schedule == "exact"

    def value(self, h: Tensor) -> Tensor:
        """Largest singular value."""
        return torch.linalg.matrix_norm(h, 2)

    def dual(self, g: Tensor) -> Tensor:
        """Polar factor of g."""
        if self.schedule == "exact":
            return polar(g)
        dtype = getattr(torch, self.dtype) if self.dtype else None
        dtype = dtype.to_complex() if dtype and g.is_complex() else dtype
        return orthogonalize(g, self.schedule, self.steps, dtype)

    @classmethod
    def examples(cls) -> list[Norm]:
        """Exact and Muon-grade."""
        return [cls("exact"), cls(), cls("quintic"), cls("keller_jordan", dtype="bfloat16")]
