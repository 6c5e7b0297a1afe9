"""HRA: products of trained reflections."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.adapters.base import Adapter, Source, Tensors, check_choice, is_whole
from steepest.adapters.reflections import paired, reflect
from steepest.checks import check_range
from steepest.linalg.qr import qr
from steepest.manifolds.base import Manifold
from steepest.manifolds.grassmann import Grassmann
from steepest.manifolds.oblique import Oblique


@dataclasses.dataclass(frozen=True)
class HRA(Adapter):
    """Householder reflection adaptation: W' = W H_1 H_2 ... H_r, H_i the reflection along a trained vector u_i (Yuan,
    Liu and Xu 2024, "Bridging the gap between low-rank and orthogonal adaptation via Householder reflection
    adaptation", 2405.17484).

    The vectors are equal in pairs at the start, whose reflections cancel. Their lengths do not matter, so that they are
    a point of `Oblique`. The layer's output comes from two thin products, never from the product of reflections as a
    matrix.

    Args:
        r: number of reflections, even.
        regularizer: weight of the penalty |I - U^T U|_F on the unit vectors, which the training loop has to add
            (`steepest.adapters.penalty`); the authors take 1e-5 to 1e-4. The more orthogonal, the larger the
            change of W.
        strict: the limit of a large regulariser, U^T U = I. The product then is I - 2 U U^T, which never is near the
            identity; the authors start there nevertheless. Here W' = W (I - 2 U0 U0^T)(I - 2 U U^T) with U0 the frozen
            start, so that W' = W there. The subspace alone matters: U is a point of `Grassmann`, and is made
            orthonormal in each pass, so that other optimisers can train it as well.

    >>> from steepest.adapters import HRAConfig
    >>> config = HRAConfig(r=8, regularizer=1e-4, target_modules=["query", "value"])
    """

    r: int = 8
    regularizer: float = 0.0
    strict: bool = False

    trained: ClassVar[tuple[str, ...]] = ("u",)
    frozen: ClassVar[tuple[str, ...]] = ("u0",)
    basis: ClassVar[str | None] = "u0"

    def __post_init__(self) -> None:
        check_choice("strict", self.strict, (True, False))
        whole = is_whole(self.r)
        if not whole or (self.r % 2 and not self.strict):
            expected = (
                "a positive whole number" if self.strict else "an even number of reflections: they start in pairs"
            )
            raise ValueError(f"r: got {self.r!r}, expected {expected}")
        check_range("regularizer", self.regularizer)
        if self.strict and self.regularizer:
            raise ValueError(f"regularizer: got {self.regularizer}, but with strict=True it has nothing left to do")

    def bases(self, source: Source, basis: Tensor | None = None) -> dict[str, Tensor]:
        """The frozen start of the strict form."""
        if not self.strict:
            return {}
        if basis is None:
            self._check(source)
            basis = qr(source.normal(source.weight.shape[1], self.r, purpose="u"))[0]
        return {"u0": basis}

    def start(self, source: Source, bases: Tensors) -> dict[str, Tensor]:
        """Unit vectors: random ones, each twice; or the frozen start."""
        if self.strict:
            return {"u": bases["u0"].clone()}
        self._check(source)
        return {"u": paired(source.normal(source.weight.shape[1], self.r // 2, purpose="u"))}

    def turn(self, t: Tensors, x: Tensor) -> Tensor:
        """H_1 H_2 ... x."""
        if self.strict:
            return _mirror(t["u0"], _mirror(qr(t["u"])[0], x))
        return reflect(t["u"], x, inverse=True)

    def turn_back(self, t: Tensors, x: Tensor) -> Tensor:
        """... H_2 H_1 x."""
        if self.strict:
            return _mirror(qr(t["u"])[0], _mirror(t["u0"], x))
        return reflect(t["u"], x)

    def orthogonal(self) -> bool:
        """Always."""
        return True

    def points(self) -> dict[tuple[str, ...], Manifold]:
        """Unit columns, or a subspace."""
        return {("u",): Grassmann() if self.strict else Oblique()}

    def penalty(self, t: Tensors) -> Tensor | None:
        """The regulariser."""
        if not self.regularizer:
            return None
        unit = t["u"] / torch.linalg.vector_norm(t["u"], dim=0)
        identity = torch.eye(self.r, dtype=unit.dtype, device=unit.device)
        return self.regularizer * torch.linalg.matrix_norm(identity - unit.mT @ unit)

    def count(self, out_features: int, in_features: int) -> int:
        """Entries of the vectors."""
        return in_features * self.r

    @classmethod
    def examples(cls) -> list[Adapter]:
        """Free, regularised, strict."""
        return [cls(r=4), cls(r=2, regularizer=1e-4), cls(r=3, strict=True)]

    def _check(self, source: Source) -> None:
        if self.r > source.weight.shape[1]:
            raise ValueError(f"r: got {self.r}, but a layer to be adapted has {source.weight.shape[1]} inputs only")


def _mirror(q: Tensor, x: Tensor) -> Tensor:
    """(I - 2 q q^T) x for rows x, q orthonormal."""
    return x - 2 * (x @ q) @ q.mT
