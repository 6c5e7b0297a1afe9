"""Steepest descent under a norm."""

from __future__ import annotations

import dataclasses
from typing import Any

from steepest.norms.base import Norm
from steepest.norms.spectral import Spectral
from steepest.norms.stiefel_spectral import StiefelSpectral
from steepest.transforms.base import Context, State, Transform, as_matrix


@dataclasses.dataclass(frozen=True)
class Dualize(Transform):
    """h replaced by the direction of norm one that it rewards most: the norm's dual map.

    Under the spectral norm this orthogonalises h, as Muon does; under the Frobenius norm it normalises, under the
    largest entry it takes signs. A norm on the blocks together acts on all of them, any other on each block apart, a
    vector as a column.

    Bernstein and Newhouse 2024 (2409.20325); Pethick et al. 2025 (2502.07529).
    """

    norm: Norm = Spectral()  # noqa: RUF009  (a frozen value)

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", Norm.from_spec(self.norm))

    @property
    def joint(self) -> bool:
        """As the norm."""
        return self.norm.joint

    def update(self, h: Any, state: State, ctx: Context) -> Any:
        """The dual of h."""
        if self.joint and len(h) != 2:
            raise ValueError(f"norm: {self.norm} is a norm on Stiefel's two blocks, and {ctx.manifold} has {len(h)}")
        return self.norm.dual(h) if self.joint else self.norm.dual(as_matrix(h, ctx.ndim)).reshape(h.shape)

    @classmethod
    def examples(cls) -> list[Transform]:
        """Every norm's dual map."""
        norms = (norm for family in Norm.known.values() for norm in family.examples())
        return [cls(norm) for norm in norms if not isinstance(norm, StiefelSpectral)]
