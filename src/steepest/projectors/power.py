"""A subspace that follows the leading singular vectors by power iteration."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.linalg.basis import orthonormal_basis
from steepest.projectors.base import Moment, Projector, State
from steepest.projectors.gaussian import random_basis


@dataclasses.dataclass(frozen=True)
class Power(Projector):
    """Orthogonal iteration P <- orth(x^H x P), the block power method, from where the subspace was: after a few
    iterations the r leading right singular vectors of the gradient.

    x P is at hand when a step has been made, so that an iteration costs one product and a thin orthogonalisation, less
    than the step itself; the new subspace takes effect at the next one. The `iterations` of a move follow each other
    step by step, each with its own gradient, which averages their noise. At the first step they all run at once, from a
    random start.

    Args:
        iterations: of each move.

    Halko, Martinsson and Tropp 2011 (0909.4061), algorithm 4.4; as a projector of gradients Liao et al. 2024, "GaLore+"
    (2412.19820), and, every step, Vogels, Karimireddy and Jaggi 2019, "PowerSGD" (1905.13727).

    >>> optimizer = GaLore(param_groups(torch.nn.Linear(8, 8)), projector=Power(every=200, iterations=2))
    """

    every: int = 20
    iterations: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("iterations", self.iterations, 1)

    def age(self, at: Moment) -> int:
        """From the step behind the last iteration."""
        place = (at.step - 1 + self._phase(at)) % self.every
        moving = 0 < place < self.iterations or self.iterations >= self.every
        age = 1 if moving else (place - self.iterations) % self.every + 1
        return int(age if age < at.step - 1 else at.step)  # the first step makes no iteration for the second

    def init(self, x: Tensor, rank: int) -> State:
        """A random start."""
        return {"basis": random_basis(x, rank)}

    def basis(self, x: Tensor, rank: int, state: State, at: Moment) -> Tensor:
        """Where the iteration is."""
        return state["basis"]

    def before(self, x: Tensor, rank: int, state: State, at: Moment) -> State | None:
        """The first move."""
        if at.step > 1:
            return None
        p = state["basis"]
        for _ in range(self.iterations):
            p = _iterated(x, x @ p, p)
        return {"basis": p}

    def after(self, x: Tensor, low: Tensor, state: State, at: Moment) -> State | None:
        """One iteration, when it is due."""
        if at.step == 1 or (at.step - 1 + self._phase(at)) % self.every >= self.iterations:
            return None
        return {"basis": _iterated(x, low, state["basis"])}

    @classmethod
    def examples(cls) -> list[Projector]:
        """Now and then, and every step."""
        return [cls(), cls(every=1, iterations=1)]


def _iterated(x: Tensor, low: Tensor, p: Tensor) -> Tensor:
    """The next subspace, with low = x P; P where x sees nothing of it, as in a gradient of zero."""
    y = x.mH @ low
    return orthonormal_basis(torch.where((y == 0).all(-2, keepdim=True), p, y))
