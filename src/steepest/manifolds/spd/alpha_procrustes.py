"""The alpha-Procrustes metrics."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from steepest.linalg import sym_power, sym_power_derivative
from steepest.manifolds.spd.bures_wasserstein import BuresWasserstein
from steepest.manifolds.spd.factors import square
from steepest.manifolds.spd.manifold import SPDMetric
from steepest.manifolds.spd.pullback import Pullback
from steepest.spec import tensor_field


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AlphaProcrustes(Pullback):
    """min |X_c^alpha - Y_c^alpha Q| / |alpha| over unitary Q, with X_c = X + c I: between Bures-Wasserstein and
    log-Euclidean.

    Coordinates are those of `BuresWasserstein` at (X + c I)^(2 alpha). alpha = 1/2 is twice the Bures-Wasserstein
    distance, the limit at alpha = 0 the log-Euclidean one.

    The regularisation c > 0 bounds the distance to singular matrices, whose logarithms or negative powers would be
    infinite. Geodesics and means may then leave the positive definite matrices, though not X > -c I, so the retraction
    is the second-order one.

    Args:
        alpha: not zero.
        regularization: c >= 0, a number, or a tensor without dimensions, to which gradients flow; as JSON a number.
        m: the matrix M of the generalised `BuresWasserstein`; None: the identity.

    Minh 2019 (1908.09275). With c and M: Goomanee, Han, Jawanpuria and Mishra 2025 (2511.09801), for operators of
    infinite dimension that are a multiple of the identity and a small one. For matrices this reads them so: c I is
    added to either matrix, and M enters as in the generalised Bures-Wasserstein metric of the powers.

    >>> from steepest.manifolds import AlphaProcrustes
    >>> x, y = torch.eye(2), 4 * torch.eye(2)
    >>> near = SPD(AlphaProcrustes(1e-4)).dist(x, y)
    >>> torch.allclose(near, SPD("log-euclidean").dist(x, y), rtol=1e-3)
    True
    """

    alpha: float
    regularization: Any = 0.0
    m: Tensor | None = None

    def __post_init__(self) -> None:
        tensor_field(self, "m")
        if not (self.alpha and abs(self.alpha) < float("inf")):
            raise ValueError(
                f"alpha: expected a finite number other than zero, got {self.alpha}; at zero the limit is log-Euclidean"
            )
        c = self.regularization
        if isinstance(c, Tensor):
            if c.ndim:
                raise ValueError(
                    f"regularization: expected a number or a tensor without dimensions, got shape {tuple(c.shape)}"
                )
        elif not 0 <= c < float("inf"):
            raise ValueError(f"regularization: expected a number from zero up, got {c}")

    @property
    def inner(self) -> SPDMetric:
        """Bures-Wasserstein."""
        return BuresWasserstein(self.m)

    @property
    def scale(self) -> float:
        """1 / alpha."""
        return 1 / self.alpha

    @property
    def retractions(self) -> tuple[str, ...]:
        """Geodesics may leave where there is regularisation."""
        plain = not isinstance(self.regularization, Tensor) and self.regularization == 0
        return ("exp", "second_order") if plain else ("second_order",)

    def there(self, x: Tensor) -> Tensor:
        """(X + c I)^(2 alpha), as the square of (X + c I)^alpha."""
        return square(sym_power(self._raised(x), self.alpha))

    def back(self, y: Tensor) -> Tensor:
        """Y^(1 / (2 alpha)) - c I."""
        root = square(sym_power(y, 0.25 / self.alpha))
        return root - self._shift(root)

    def along(self, x: Tensor, v: Tensor) -> Tensor:
        """D (X + c I)^(2 alpha) [V]."""
        return sym_power_derivative(self._raised(x), v, 2 * self.alpha)

    def along_back(self, y: Tensor, w: Tensor) -> Tensor:
        """D Y^(1 / (2 alpha)) [W]."""
        return sym_power_derivative(y, w, 0.5 / self.alpha)

    def _raised(self, x: Tensor) -> Tensor:
        return x + self._shift(x)

    def _shift(self, x: Tensor) -> Tensor:
        return self.regularization * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)

    @classmethod
    def examples(cls) -> list[tuple[SPDMetric, tuple[int, int]]]:
        """Without and with regularisation."""
        return [(cls(0.25), (3, 3)), (cls(-0.3, 0.2), (3, 3))]
