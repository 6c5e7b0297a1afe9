"""Kernel metrics of means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from steepest.manifolds.spd.kernel import KernelMetric
from steepest.manifolds.spd.manifold import SPDMetric


@dataclasses.dataclass(frozen=True)
class MeanKernel(KernelMetric):
    """The kernel metrics with phi(x, y) = scale * m(x, y)^exponent, for a mean m of two numbers.

    | average | exponent | scale | metric |
    |---|---|---|---|
    | "geometric" | 2 | 1 | affine-invariant |
    | "logarithmic" | 2 | 1 | log-Euclidean |
    | "arithmetic" | 1 | 4 | Bures-Wasserstein |
    | "logarithmic" | 1 | 1 | Bogoliubov-Kubo-Mori |
    | any | 0 | 1 | Euclidean |

    Where the metric has a class of its own, that class has the formulas for geodesics that a kernel lacks: see
    `KernelMetric`.

    Args:
        average: m, as "arithmetic", "geometric", "harmonic" or "logarithmic", or a number r for the power mean
            ((x^r + y^r) / 2)^(1/r), whose limit at r = 0 is the geometric mean.
        exponent: of the mean.
        scale: a positive factor; squared lengths are divided by it.

    Hiai and Petz 2009 (0809.4974); Thanwerdas and Pennec 2022 (2109.05768).

    >>> from steepest.manifolds import MeanKernel
    >>> x, v = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.eye(2)
    >>> torch.allclose(SPD(MeanKernel("geometric", 2)).norm(x, v), SPD().norm(x, v))
    True
    """

    average: str | float
    exponent: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.average, str) and self.average not in MEANS:
            raise ValueError(f"average: unknown {self.average!r}, expected a number or one of {', '.join(MEANS)}")
        if not self.scale > 0:
            raise ValueError(f"scale: expected a positive number, got {self.scale}")

    def phi(self, x: Tensor, y: Tensor) -> Tensor:
        """scale * m(x, y)^exponent."""
        mean = MEANS[self.average](x, y) if isinstance(self.average, str) else _power_mean(x, y, self.average)
        return self.scale * mean**self.exponent

    @classmethod
    def examples(cls) -> list[tuple[SPDMetric, tuple[int, int]]]:
        """Bogoliubov-Kubo-Mori; small, for its geodesics take long."""
        return [(cls("logarithmic", 1.0), (2, 2))]


def _arithmetic(x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (x + y)


def _geometric(x: Tensor, y: Tensor) -> Tensor:
    return x.sqrt() * y.sqrt()


def _harmonic(x: Tensor, y: Tensor) -> Tensor:
    return 2 * x * y / (x + y)


def _logarithmic(x: Tensor, y: Tensor) -> Tensor:
    """(x - y) / (log x - log y), as the geometric mean times sinh(u) / u with u = log(x / y) / 2."""
    return _geometric(x, y) * _sinhc(0.5 * (x.log() - y.log()))


def _sinhc(u: Tensor) -> Tensor:
    """sinh(u) / u, and right in its derivatives at zero: by the series up to 1/2, which errs by 5e-17."""
    near = u.abs() < 0.5
    z = torch.where(near, u, 0).square()
    series = torch.ones_like(u)
    for k in (156, 110, 72, 42, 20, 6):
        series = 1 + series * z / k
    far = torch.where(near, 1, u)
    return torch.where(near, series, far.sinh() / far)


def _power_mean(x: Tensor, y: Tensor, r: float) -> Tensor:
    """The geometric mean times cosh(r u)^(1/r), u = log(x / y) / 2: no power of x overflows."""
    if r == 0:
        return _geometric(x, y)
    return _geometric(x, y) * torch.cosh(0.5 * r * (x.log() - y.log())) ** (1 / r)


MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "arithmetic": _arithmetic,
    "geometric": _geometric,
    "harmonic": _harmonic,
    "logarithmic": _logarithmic,
}
"""Means of two positive numbers, by name."""
