"""The simplex method of Nelder and Mead."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.manifolds.base import Manifold
from steepest.manifolds.euclidean import Euclidean
from steepest.manifolds.tensors import as_tuple, like
from steepest.solvers.base import Method, State, Stop
from steepest.solvers.problem import Iterate, Problem

LIMIT = 1000
"""Coordinates up to which a simplex is made."""
FLAT = 2
"""Steps in a row with one value at all corners after which a run is given up; once is no sign: the corners may lie
around a minimum, at one height."""


@dataclasses.dataclass(frozen=True)
class NelderMead(Method):
    """A simplex of d + 1 points, d the manifold's dimension, whose worst corner is moved over and over. It takes values
    alone, of any function: one made of numpy or of whole numbers, too. Good up to some ten dimensions.

    The simplex lies in the tangent space at a base point, `(d + 1, n)` coordinates there, and the function is looked at
    through the retraction; so reflection, expansion and contraction are the flat ones, in the Riemannian metric. After
    every `recentre` times d steps the best corner becomes the base, the edges from it to the others are carried there,
    and the function is computed anew at their ends; not on a Euclidean space, where nothing would change.

    Args:
        size: length of the first edges, which leave x0 at right angles.
        tolerance: the run ends, as a success, when no corner is further than this from the best one. None: ten times
            the root of the precision, 1.5e-7 in float64, below which values do not tell near a minimum. The `tolerance`
            of `minimize`, for norms of gradients, has no say.
        adaptive: factors that depend on d, so that in high dimension the simplex does not collapse too early: expansion
            by 1 + 2/d, contraction by 3/4 - 1/(2d), shrinking by 1 - 1/d. False: 2, 1/2, 1/2.
        recentre: see above.

    Nelder and Mead 1965, in the form of Lagarias, Reeds, Wright and Wright 1998; Gao and Han 2012, "Implementing the
    Nelder-Mead simplex algorithm with adaptive parameters". On manifolds Dreisigmeyer 2007, "Equality constraints,
    Riemannian manifolds and direct search methods", works in tangent spaces too; Manopt's `neldermead` takes means of
    the corners instead, an inner iteration that is not needed here.

    >>> from steepest import Sphere, minimize
    >>> def most_common(x):
    ...     return torch.tensor(max(abs(v - 0.6) + abs(u) for u, v in [x.tolist()]))
    >>> result = minimize(most_common, torch.tensor([0.6, 0.8], dtype=torch.float64), Sphere(), "NelderMead")
    >>> result.success, round(result.value, 4)
    (True, 0.4)
    """

    size: float = 0.25
    tolerance: float | None = None
    adaptive: bool = True
    recentre: int = 20

    order: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_range("size", self.size, open_low=True)
        check_range("tolerance", self.tolerance or 0.0)
        check_range("recentre", self.recentre, 1)

    def fault(self, manifold: Manifold, x: Any) -> str:
        """Too many coordinates."""
        n = Problem(lambda x: x, manifold).at(x).size
        if n <= LIMIT:
            return ""
        return f"keeps a simplex of {n} coordinates squared, and takes at most {LIMIT}; use ParticleSwarm, or gradients"

    def init(self, at: Iterate) -> State:
        """A corner at x0, and one along each vector of an orthonormal basis of the tangent space."""
        edges = self.size * _basis(at)
        return {**_based(at, torch.cat([edges.new_zeros(1, at.size), edges])), "flat": 0}

    def step(self, at: Iterate, state: State) -> tuple[Iterate, State]:
        """The worst corner is moved, or all of them towards the best."""
        base = at.problem.at(_point(state, at))
        state = _sorted(state)
        d = len(state["corners"]) - 1
        span, flat = self._span(state)
        plain = isinstance(at.problem.manifold, Euclidean)
        if d and state["iteration"] % (self.recentre * d) == self.recentre * d - 1 and not plain:
            z = state["corners"] - state["corners"][0]
            base, state = at, {**state, **_based(at, at.conform(base.carry(z, at)))}
            state = _sorted(state)
        z, values = self._moved(base, state["corners"], state["values"])
        best = min(range(d + 1), key=values.__getitem__)
        to = at
        if values[best] < at.value:
            to = base.move(z[best])
            to.__dict__["value"] = values[best]  # it is known
        return to, {**state, "corners": z, "values": values, "flat": flat, "note": {"size": span}}

    def _span(self, state: State) -> tuple[float, int]:
        """Distance of the furthest corner from the best one, and for how many steps all have had one value; raises
        `Stop` where either says so."""
        z, values = state["corners"], state["values"]
        span = float(torch.linalg.vector_norm(z - z[0], dim=-1).max())
        eps = torch.finfo(z.dtype).eps
        tolerance = 10 * eps**0.5 if self.tolerance is None else self.tolerance
        if span <= tolerance:
            raise Stop(f"the simplex has shrunk to {span:.2g}, the tolerance is {tolerance:.2g}", converged=True)
        flat = state["flat"] + 1 if values[-1] - values[0] <= 4 * eps * abs(values[0]) else 0
        if flat >= FLAT:
            raise Stop(f"the values at all corners of a simplex of size {span:.2g} are the same, up to rounding")
        return span, flat

    def _moved(self, base: Iterate, z: Tensor, values: list[float]) -> tuple[Tensor, list[float]]:
        """The simplex, whose corners come sorted, after one step (Lagarias et al. 1998, section 2)."""
        expansion, contraction, shrinking = self._factors(len(z) - 1)
        centre = z[:-1].mean(0)
        p = centre - z[-1]

        def along(t: float) -> tuple[float, Tensor]:
            corner = centre + t * p
            return base.move(corner).value, corner

        found = along(1.0)
        if found[0] < values[0]:
            found = min(along(expansion), found, key=_first)
        elif found[0] >= values[-2]:
            limit = min(found[0], values[-1])
            found = along(contraction if found[0] < values[-1] else -contraction)
            if not found[0] < limit:
                z = z[0] + shrinking * (z - z[0])
                return z, [values[0], *(base.move(corner).value for corner in z[1:])]
        return torch.cat([z[:-1], found[1][None]]), [*values[:-1], found[0]]

    def _factors(self, d: int) -> tuple[float, float, float]:
        """Of expansion, contraction and shrinking."""
        d = max(d, 2) if self.adaptive else 2
        return 1 + 2 / d, 0.75 - 0.5 / d, 1 - 1 / d

    @classmethod
    def examples(cls) -> list[Method]:
        """The defaults."""
        return [cls()]


def _basis(at: Iterate) -> Tensor:
    """An orthonormal basis of the coordinates that tangent vectors have, `(d, n)`."""
    eye = torch.eye(at.size, dtype=at.dtype, device=as_tuple(at.x)[0].device)
    onto = at.conform(eye)
    if torch.equal(onto, eye):
        return eye
    shares, vectors = torch.linalg.eigh((onto + onto.mT) / 2)
    return vectors.mT[shares > 0.5]


def _based(base: Iterate, z: Tensor) -> State:
    values = [base.value, *(base.move(corner).value for corner in z[1:])]
    return {"base": list(as_tuple(base.x)), "corners": z, "values": values}


def _point(state: State, at: Iterate) -> Any:
    return like(at.x, state["base"])


def _sorted(state: State) -> State:
    """The best corner first; of equal ones, the one that was first."""
    values = state["values"]
    order = sorted(range(len(values)), key=values.__getitem__)
    return {**state, "corners": state["corners"][order], "values": [values[i] for i in order]}


def _first(pair: tuple[float, Tensor]) -> float:
    return pair[0]
