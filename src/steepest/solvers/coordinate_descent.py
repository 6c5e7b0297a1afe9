"""Coordinate descent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.base import Manifold
from steepest.manifolds.tensors import as_tuple
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.coordinates import Coordinates, coordinates
from steepest.solvers.line_search import Armijo, LineSearch, guess
from steepest.solvers.problem import Iterate

VARIANTS = ("exact", "linearised")
SELECTIONS = ("cyclic", "random")


@dataclasses.dataclass(frozen=True)
class CoordinateDescent(Method):
    """Steps along coordinate directions, each of which changes a few rows and stays on the manifold by itself: Givens
    rotations of two rows, O(p) each, on orthonormal matrices (`Stiefel`, `Grassmann`, `Orthogonal`,
    `SpecialOrthogonal`); hyperbolic ones (`IndefiniteStiefel` with a diagonal form; the hyperboloid of Lorentz is
    a = diag(-1, 1, ..., 1), j = (-1,)); transvections of `SymplecticStiefel`; two columns of the Cholesky factor on
    `SPD` with the affine-invariant metric; entries of `PSDFixedRank` and `Euclidean`. There is no retraction.

    Directions that act on disjoint rows commute, and go together: the pairs of n rows are the n - 1 rounds of a
    tournament (n rounds for odd n), each of n / 2 rotations at once. A function that autograd differentiates costs a
    whole gradient however few rows are to be moved, so that a step is what one gradient is good for:

    Args:
        variant: "exact", RCD: one round, along the gradient at its start. "linearised", RCDlin: a sweep through all
            rounds with the gradient, not the rows, kept as it was at the sweep's start.
        selection: "cyclic", rounds in turn; "random", a random round of a random tournament, and for the sweeps of
            "linearised" a random order.
        step_size: t for all rounds: each row turns by -t times its slope. None: by `line_search`, from what the same
            round has found last.
        line_search: Armijo's rule on t, for all directions of the step together.

    Han, Jawanpuria and Mishra 2024, "Riemannian coordinate descent algorithms on matrix manifolds" (2406.02225), and
    their code. There all directions of a sweep go one after the other; rounds are that with another order, for the
    directions of one round have slopes that do not depend on each other's rows but through the function. Shalit and
    Chechik 2014, the orthogonal group.

    >>> from steepest import Orthogonal, minimize
    >>> a = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    >>> result = minimize(lambda x: -(a * x).sum(), torch.eye(3), Orthogonal(), "CoordinateDescent", tolerance=1e-3)
    >>> round(result.value, 3)  # of the rotation nearest to a, for that is where one can turn to
    -4.0
    """

    variant: str = "exact"
    selection: str = "cyclic"
    step_size: float | None = None
    line_search: LineSearch = dataclasses.field(default_factory=Armijo)

    def __post_init__(self) -> None:
        for name, known in (("variant", VARIANTS), ("selection", SELECTIONS)):
            if (got := getattr(self, name)) not in known:
                raise ValueError(f"{name}: unknown {got!r}, expected one of {', '.join(known)}")
        if self.step_size is not None:
            check_range("step_size", self.step_size, open_low=True)
        object.__setattr__(self, "line_search", armijo(self.line_search))

    def fault(self, manifold: Manifold, x: Any) -> str:
        """Manifolds whose directions are known, and real points."""
        rule = coordinates(manifold)
        if rule is None:
            names = sorted(m.__name__ for family in Coordinates.__subclasses__() for m in family.manifolds)
            return f"knows no coordinate directions of {manifold}, but of {', '.join(names)}"
        if any(t.is_complex() for t in as_tuple(x)):
            return "works on real points, and these are complex. Take SteepestDescent"
        return rule.fault(x)

    def init(self, at: Iterate) -> State:
        """The first round, and a step as far as a unit vector, or as the gradient where that is shorter."""
        return {"round": 0, "steps": [1 / max(at.norm, 1.0)]}

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """The next round, or sweep, along which f decreases."""
        rule = coordinates(at.problem.manifold)
        assert rule is not None
        w, count = rule.start(at), rule.rounds(at.x)
        attempts = count if self.variant == "exact" else min(count, 1)
        for attempt in range(attempts):
            first, order = self._selected(at, rule, state, attempt, count)
            rounds = [first] if self.variant == "exact" else range(count)
            slope = -float(sum(rule.slopes(w, k, order).square().sum() for k in rounds))
            if slope == 0:
                continue
            steps = state["steps"]
            which = first if self.selection == "cyclic" and self.variant == "exact" else 0
            found = self._search(at, rule, w, rounds, order, slope, steps[min(which, len(steps) - 1)])
            if found is None:
                continue
            t, to = found
            steps = [*steps[:which], guess(at, to, slope, t), *steps[which + 1 :]]
            return to, {"round": (first + 1) % count, "steps": steps, "note": {"step": t}}
        raise Stop("no coordinate decreases the function: rounding, or a gradient that is not its gradient")

    def _selected(
        self, at: Iterate, rule: Coordinates, state: State, attempt: int, count: int
    ) -> tuple[int, Tensor | None]:
        """A round, and the order of labels."""
        if self.selection == "cyclic":
            return (state["round"] + attempt) % count, None
        generator = at.problem.generator(state["iteration"], attempt)
        order = torch.randperm(rule.labels(at.x), generator=generator, device=generator.device)
        return int(torch.randint(count, (), generator=generator, device=generator.device)), order

    def _search(
        self,
        at: Iterate,
        rule: Coordinates,
        w: Any,
        rounds: Iterable[int],
        order: Tensor | None,
        slope: float,
        initial: float,
    ) -> tuple[float, Iterate] | None:
        def path(t: float) -> Iterate:
            turned = w
            for k in rounds:
                turned = rule.turn(turned, k, order, -t * rule.slopes(turned, k, order))
            return Iterate(at.problem, rule.point(turned))

        assert isinstance(self.line_search, Armijo)
        if self.step_size is None:
            return self.line_search.along(path, at, slope, initial)
        return fixed(path, self.step_size)

    @classmethod
    def examples(cls) -> list[Method]:
        """Both variants with both ways to select."""
        return [cls(variant, selection) for variant in VARIANTS for selection in SELECTIONS]


def armijo(line_search: Any) -> Armijo:
    """The line search, which must be one without slopes: those are of straight lines."""
    found = LineSearch.from_spec(line_search)
    if not isinstance(found, Armijo):
        raise TypeError(f"line_search: got {type(found).__name__}, expected Armijo(...): it searches along a curve")
    return found


def fixed(path: Any, t: float) -> tuple[float, Iterate]:
    """The step t, where f is finite after it."""
    to = path(t)
    if not math.isfinite(to.value):
        raise Stop(f"step_size = {t:g} leads where the function is not finite: take a smaller one, or None")
    return t, to
