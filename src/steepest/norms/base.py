"""What a norm is: its value, and its dual map, the direction of steepest descent under it."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from torch import Tensor

from steepest.spec import Spec


class Norm(Spec, abc.ABC):
    """A norm on real or complex matrices `(*b, m, n)`; a frozen dataclass whose fields say how it is computed.

    `dual(g)` solves the linear minimisation oracle up to its sign: it maximises `<g, d>` over `value(d) <= 1`, so that
    `<g, dual(g)>` is the dual norm of g; the inner product is Re tr(g^H d). Where g is zero, so is the result; on a
    rank-deficient g it leaves the null space alone.
    """

    joint: ClassVar[bool] = False
    """Whether the norm couples all blocks of a point's coordinates and is given their tuple."""
    exact: ClassVar[bool] = True
    """Whether `dual` is exact to round-off; an approximation states its accuracy in its docstring."""

    @abc.abstractmethod
    def value(self, h: Any) -> Tensor:
        """The norm, shape `(*b,)`."""

    @abc.abstractmethod
    def dual(self, g: Any) -> Any:
        """The matrix of norm one (or zero, for a zero g) that g rewards most; same shape and dtype as g."""

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[Norm]:
        """Instances that the common suite runs on."""


def divide(x: Tensor, size: Tensor) -> Tensor:
    """x / size, and zero where size is zero."""
    return x / size.masked_fill(size == 0, 1)
