"""A metric deformed by a power of the matrix."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from steepest.linalg import sym_power, sym_power_derivative
from steepest.manifolds.spd.affine_invariant import AffineInvariant
from steepest.manifolds.spd.bures_wasserstein import BuresWasserstein
from steepest.manifolds.spd.factors import square
from steepest.manifolds.spd.manifold import SPDMetric, _metric
from steepest.manifolds.spd.pullback import Pullback


@dataclasses.dataclass(frozen=True)
class PowerDeformed(Pullback):
    """The metric of X^p, divided by p^2: dist(X, Y) = dist_0(X^p, Y^p) / |p|.

    Coordinates are those of the inner metric at Y = X^p: `push(X, h) = p D Y^(1/p) [push_0(Y, h)]`. What the inner
    metric has in closed form stays so, but the Hessian. The log-Euclidean metric does not change; every other tends, as
    p -> 0, to the log-Euclidean one with the inner product that it has at the identity. Of the Euclidean metric
    (`MeanKernel` of exponent 0) this makes the power-Euclidean ones.

    Args:
        metric: the one to deform, or its short name.
        power: p, not zero.

    Thanwerdas and Pennec 2019 (1906.01349), the affine-invariant case; 2022 (2109.05768).

    >>> from steepest.manifolds import PowerDeformed
    >>> x, y = torch.eye(2), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> metric = PowerDeformed("log-euclidean", 0.5)
    >>> torch.allclose(SPD(metric).dist(x, y), SPD("log-euclidean").dist(x, y))
    True
    """

    metric: SPDMetric | str
    power: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", _metric(self.metric))
        if not (self.power and abs(self.power) < float("inf")):
            raise ValueError(
                f"power: expected a finite number other than zero, got {self.power}; at zero the limit is log-Euclidean"
            )

    @property
    def inner(self) -> SPDMetric:
        """The metric that is deformed."""
        return self.metric  # type: ignore[return-value]  # no longer a name

    @property
    def scale(self) -> float:
        """1 / p."""
        return 1 / self.power

    def there(self, x: Tensor) -> Tensor:
        """X^p, as the square of X^(p/2)."""
        return square(sym_power(x, self.power / 2))

    def back(self, y: Tensor) -> Tensor:
        """Y^(1/p), as the square of Y^(1/(2p))."""
        return square(sym_power(y, 0.5 / self.power))

    def along(self, x: Tensor, v: Tensor) -> Tensor:
        """D X^p [V]."""
        return sym_power_derivative(x, v, self.power)

    def along_back(self, y: Tensor, w: Tensor) -> Tensor:
        """D Y^(1/p) [W]."""
        return sym_power_derivative(y, w, 1 / self.power)

    @classmethod
    def examples(cls) -> list[tuple[SPDMetric, tuple[int, int]]]:
        """A curved metric with parallel transport and one without; a root and a negative power."""
        return [(cls(AffineInvariant(), 0.5), (3, 3)), (cls(BuresWasserstein(), -1.5), (3, 3))]
