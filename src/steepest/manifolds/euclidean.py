"""Plain tensors: the flat case, where the frame is the identity."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import total


@dataclasses.dataclass(frozen=True)
class Euclidean(Manifold):
    """All tensors with `ndim` dimensions (matrices by default), under the Frobenius inner product.

    >>> Euclidean().dist(torch.zeros(2, 2), torch.ones(2, 2)).item()
    2.0
    """

    ndim: int = 2  # type: ignore[misc]

    identity_carry: ClassVar[bool] = True
    scalars: ClassVar[tuple[str, ...]] = ("real", "complex")
    parallel: ClassVar[bool] = True

    def _push(self, x: Tensor, h: Tensor) -> Tensor:
        return h

    def _pull(self, x: Tensor, g: Tensor) -> Tensor:
        return g

    def _coords(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def _carry(self, x: Tensor, to: Tensor, h: Tensor) -> Tensor:
        return h

    def _move(self, x: Tensor, h: Tensor) -> Tensor:
        return x + h

    def _decay(self, x: Tensor, h: Tensor, rate: float) -> Tensor:
        return h + rate * x

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """`x + v`."""
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """`y - x`."""
        return y - x

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Frobenius norm of `y - x`, shape `(*b,)`."""
        return torch.linalg.vector_norm(y - x, dim=tuple(range(-self.ndim, 0))) if self.ndim else (y - x).abs()

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """v itself."""
        return v

    def hessian(self, x: Tensor, g: Tensor, gv: Tensor, v: Tensor) -> Tensor:
        """`gv`."""
        return gv

    def project(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def residual(self, x: Tensor) -> Tensor:
        """Zero; NaN where an entry is not finite."""
        return total(x.abs() * 0, self.ndim)

    def random_point(self, shape: tuple[int, ...], *, generator: Any = None, **kwargs: Any) -> Tensor:
        """Standard normal entries."""
        return torch.randn(shape, generator=generator, **kwargs)

    def shape_error(self, x: Tensor) -> str:
        """Anything with at least `ndim` dimensions will do."""
        return "" if x.ndim >= self.ndim else f"shape {tuple(x.shape)} has fewer than {self.ndim} dimensions"

    def dim(self, shape: tuple[int, ...], scalars: str = "real") -> int:
        """The number of entries."""
        return math.prod(shape) * (2 if scalars == "complex" else 1)

    @classmethod
    def examples(cls) -> list[tuple[Manifold, Any]]:
        """A matrix, a vector, a tensor of three axes, a single number."""
        return [(cls(), (5, 3)), (cls(1), (4,)), (cls(3), (2, 3, 4)), (cls(), (1, 1))]
