"""Recursive gradients that leave saddle points."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.solvers.base import State, Stop
from steepest.solvers.finite_sum.base import SumMethod, check_steps
from steepest.solvers.finite_sum.srg import SRG
from steepest.solvers.finite_sum.terms import FiniteSum
from steepest.solvers.problem import Iterate


@dataclasses.dataclass(frozen=True)
class PerturbedSRG(SumMethod):
    """`SRG`, and where the gradient is small a perturbation, which descent enlarges at a strict saddle point.

    Where the gradient's norm is at most `threshold`, an epoch begins at a point drawn uniformly from the ball of radius
    `radius` in the tangent space. Recursive gradients of f(retract(z)) then lead through that one tangent space, where
    vectors need not be carried, until z is `distance` long, or for `escape_steps` steps; every `steps` of them the
    gradient is taken of all terms anew. An epoch that has lowered f by no more than `drop` is taken back: the point is
    one of second order, and the run ends with success. One that ends above the perturbed point tells of steps that are
    too long; it is taken back as well, and the rate is halved.

    Its end is the method's own: the driver's `tolerance` does not stop it. What it finds has a gradient of at most
    `threshold`, and no direction of strongly negative curvature that `escape_steps` steps would have shown.

    Args:
        rate: of the steps.
        steps: between two full gradients. None: mini-batches in one pass.
        threshold: the gradient's norm below which a point may be a saddle.
        radius: of the ball. Far above rounding, and far below `distance`.
        distance: at which the escape ends; the last step is shortened to it.
        escape_steps: at most, of an escape; about log(distance / radius) / (rate * curvature) are needed. None: ten
            times `steps`.
        drop: by how much an escape must lower f, in units of 1 + \\|f\\|.

    Han and Gao 2020, "Escape saddle points faster on manifolds via perturbed Riemannian stochastic recursive gradient"
    (2010.12191), the algorithm; it was not compared with numbers of its authors' code. Outside of escapes the steps
    are `SRG`'s, on the manifold. That an escape without a drop ends the run is Jin et al. 2017 (1703.00887), algorithm
    4; the paper runs for a given number of steps.

    >>> from steepest import Sphere
    >>> from steepest.solvers import PerturbedSRG, minimize_sum
    >>> data = torch.eye(3).double() * torch.tensor([1.0, 2.0, 3.0])
    >>> saddle = torch.tensor([0.0, 1.0, 0.0]).double()
    >>> result = minimize_sum(lambda x, i: -(data[i] @ x) ** 2, 3, saddle, Sphere(), PerturbedSRG(0.05), batch_size=1)
    >>> round(result.value, 6), result.success
    (-3.0, True)
    """

    rate: float = 0.1
    steps: int | None = None
    threshold: float = 1e-4
    radius: float = 1e-3
    distance: float = 0.5
    escape_steps: int | None = None
    drop: float = 1e-6

    saddles: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_steps(self.rate, self.steps)
        check_range("threshold", self.threshold, open_low=True)
        check_range("radius", self.radius, open_low=True)
        check_range("distance", self.distance, self.radius, open_low=True)
        check_range("escape_steps", 1 if self.escape_steps is None else self.escape_steps, 1)
        check_range("drop", self.drop)

    def epoch(self, at: Iterate, terms: FiniteSum, state: State) -> tuple[Iterate, State]:
        """An epoch of `SRG`, or an escape."""
        if at.norm > self.threshold:
            to, changed = SRG(self.rate, self.steps).epoch(at, terms, state)
            return to, {**changed, "note": {**changed["note"], "escape": 0}}
        start = self._ball(at, terms, state["iteration"])
        to = at.move(self._escape(at, terms, state, start))
        if to.value > at.value and not to.value <= at.move(start).value:
            return to, {}  # steps too long to descend tell nothing: the driver takes it back, and halves the rate
        if at.value - to.value <= self.drop * (1 + abs(at.value)):
            raise Stop(f"gradient norm is at most {self.threshold:g}, and a perturbation leads nowhere lower", True)
        return to, {"note": {"rate": state["rate"], "escape": 1}}

    def _escape(self, at: Iterate, terms: FiniteSum, state: State, z: Tensor) -> Tensor:
        """The tangent vector that leads away, `(d,)`."""
        renewal = self.steps or terms.batches_per_pass
        v = last = at.gradient
        for k, index in enumerate(terms.batches(self.escape_steps or 10 * renewal, state["iteration"], 2)):
            if k % renewal == 0:
                v = terms.pulled(at, z, terms.everything)
            else:
                v = terms.pulled(at, z, index) - terms.pulled(at, last, index) + v
            last, z = z, z - state["rate"] * v
            if float(z.norm()) >= self.distance:
                return _shortened(last, z, self.distance)
        return z

    def _ball(self, at: Iterate, terms: FiniteSum, epoch: int) -> Tensor:
        """Uniform in the ball; in coordinates with a kernel their number stands in for the dimension, which makes the
        draw a little longer."""
        generator = terms.generator(epoch, 3)
        z = at.random(generator)
        uniform = torch.rand((), dtype=torch.float64, generator=generator, device=generator.device).item()
        return self.radius * uniform ** (1 / at.size) * z / z.norm().clamp_min(torch.finfo(z.dtype).tiny)

    @classmethod
    def examples(cls) -> list[SumMethod]:
        """The default."""
        return [cls()]


def _shortened(start: Tensor, end: Tensor, length: float) -> Tensor:
    """The point between the two, the first of which is shorter, with this length."""
    if not end.isfinite().all():
        return start
    s = end - start
    a, b, c = s @ s, s @ start, start @ start - length**2
    return start + s * (-c / (b + (b * b - a * c).sqrt()))
