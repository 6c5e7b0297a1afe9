"""The hypergradient by the dense Hessian of the lower level."""

from __future__ import annotations

import dataclasses

import torch

from steepest.solvers.bilevel.hypergradient import Estimate, Hypergradient, implicit
from steepest.solvers.bilevel.levels import Pair


@dataclasses.dataclass(frozen=True)
class Inverse(Hypergradient):
    """v = (Hess_y g)^-1 grad_y f, from all columns of the Hessian and its eigenvalues: for few unknowns, exact.

    On the coordinates that no gradient can be, where the frame has a kernel or is one of a quotient, the Hessian is
    replaced by the identity.

    Han, Mishra, Jawanpuria and Takeda 2024 (2402.03883), HINV.

    >>> from steepest.solvers import Inverse, RHGD, bilevel
    >>> upper, lower = lambda x, y: (y - 1).square().sum(), lambda x, y: (y - x.exp()).square().sum()
    >>> result = bilevel(upper, lower, torch.ones(2), torch.ones(2), method=RHGD(Inverse()))
    >>> result.success, result.x.abs().max().item() < 1e-4
    (True, True)
    """

    def estimate(self, pair: Pair) -> Estimate:
        """n products with the Hessian at once, n^3 operations."""
        below = pair.below
        eye = torch.eye(below.size, dtype=below.dtype, device=pair.pressure.device)
        tangent = below.conform(eye)
        values, vectors = torch.linalg.eigh(_symmetric(below.product(tangent) + eye - tangent))
        v = vectors @ ((vectors.mT @ pair.pressure) / values)
        inside = torch.linalg.vecdot(vectors.mT, (tangent @ vectors).mT) > 0.5
        smallest = values[inside].min() if bool(inside.any()) else values.min()
        return implicit(pair, v, float(smallest))

    @classmethod
    def examples(cls) -> list[Hypergradient]:
        """The one there is."""
        return [cls()]


def _symmetric(a: torch.Tensor) -> torch.Tensor:
    return (a + a.mT) / 2
