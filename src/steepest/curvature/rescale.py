"""How long a preconditioned gradient is to be."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from steepest.checks import check_range
from steepest.spec import Spec


@dataclasses.dataclass(frozen=True)
class Rescale(Spec, abc.ABC):
    """A factor for every layer's preconditioned gradient."""

    needs_lr: ClassVar[bool] = False
    """Whether it asks for learning rates."""

    @abc.abstractmethod
    def factors(self, g: list[Tensor], p: list[Tensor], lr: list[list[float | Tensor]]) -> list[Tensor]:
        """The factors `(l,)` of layers with gradients g and preconditioned ones p, both a list of `(l, m, n)`, and
        learning rates lr."""


@dataclasses.dataclass(frozen=True)
class OwnNorm(Rescale):
    """The gradient's own norm, layer by layer: preconditioning turns it and leaves its length, so that learning rates
    of first-order methods stay what they are. Mozaffari et al. 2023, "MKOR" (2306.01685).

    >>> kfac = KFAC(torch.nn.Linear(4, 2), rescale=OwnNorm())
    """

    def factors(self, g: list[Tensor], p: list[Tensor], lr: list[list[float | Tensor]]) -> list[Tensor]:
        """Norm of g by that of p; 1 where p is zero."""
        norms = [(_norm(a), _norm(b)) for a, b in zip(g, p, strict=True)]
        return [torch.where(b > 0, a / b, 1) for a, b in norms]


@dataclasses.dataclass(frozen=True)
class KLClip(Rescale):
    """One factor for all layers, min(1, sqrt(limit / sum lr^2 <g, p>)): the step's distance in Kullback-Leibler
    divergence, as the factors see it, stays below `limit`.

    Learning rates are those of the optimiser that the preconditioner is attached to. Ba, Grosse and Martens 2017,
    "Distributed second-order optimization using Kronecker-factored approximations".

    >>> kfac = KFAC(torch.nn.Linear(4, 2), rescale=KLClip(1e-3))
    """

    limit: float = 1e-3

    needs_lr: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("limit", self.limit, open_low=True)

    def factors(self, g: list[Tensor], p: list[Tensor], lr: list[list[float | Tensor]]) -> list[Tensor]:
        """The same number everywhere; layers whose gradient is not finite do not count."""
        sizes = []
        for a, b, rates in zip(g, p, lr, strict=True):
            dots = (a * b).sum((-2, -1))
            squares = torch.stack([torch.as_tensor(r, dtype=a.dtype, device=a.device) for r in rates]).square()
            sizes.append(torch.where(dots.isfinite(), dots * squares, 0).sum().to(g[0].device, torch.float64))
        total = torch.stack(sizes).sum()
        factor = torch.where(total > 0, (self.limit / total).sqrt().clamp_max(1), 1)
        return [factor.to(a.device, a.dtype).expand(len(a)) for a in g]


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-2, -1))
