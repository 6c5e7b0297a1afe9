"""What a method of `bilevel` is."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from steepest.solvers.bilevel.hypergradient import Estimate, Hypergradient
from steepest.solvers.bilevel.levels import Levels
from steepest.spec import Spec


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a method stands after a step."""

    x: Any
    y: Any
    value: float
    """f(x, y)."""
    norm: float
    """Riemannian norm of the hypergradient, as the method has it."""
    lower_norm: float
    """Riemannian norm of grad_y g."""
    covector: Any
    """The hypergradient as the method has it: Euclidean, packed like x."""
    estimate: Estimate | None
    """What it comes from, where that is an estimate at this y."""
    note: dict[str, Any]


class BilevelMethod(Spec, abc.ABC):
    """A way from one x and y to the next: a frozen dataclass whose fields are its options."""

    descends: ClassVar[bool] = True
    """Whether a long time without lower values is a sign that rounding is reached."""

    hypergradient: Hypergradient
    """What estimates the gradient."""

    @abc.abstractmethod
    def walk(self, levels: Levels, x: Any, y: Any) -> Iterator[Standing]:
        """Where it stands, at the start and after each step; raises `steepest.solvers.Stop` where it cannot go on."""

    @classmethod
    @abc.abstractmethod
    def examples(cls) -> list[BilevelMethod]:
        """Instances: what the tests run."""
