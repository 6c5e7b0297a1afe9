"""Steepest descent under a norm."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.norms import Norm, Spectral
from steepest.optim.matrix_optimizer import RoleOptimizer
from steepest.optim.options import Shared, options
from steepest.transforms import Chain, Dualize, Momentum, Scale, ShapeScale, WeightDecay, chain


class TrustRegion(RoleOptimizer):
    """Stochastic trust-region steps under any norm: the point of a ball of radius lr that the momentum rewards most.

    Args:
        params: best `param_groups(model)`, which knows which axes of a parameter form its matrix; a vector counts as a
            column. Every role steps alike; give groups a `norm` of their own for another.
        lr: radius of the trust region: every step has norm lr (with the polynomials of `Spectral()`, up to 1.16 lr).
        momentum: factor of the average of gradients; 0 for none.
        norm: any norm: `Spectral()` is Muon (on a manifold intrinsic Muon), `Frobenius()` normalised SGD, `Max()`
            signSGD, `Nuclear()` steps of rank one.
        radius: of the ball of the same norm in which a plain parameter is kept, by conditional gradients (Frank-Wolfe):
            x <- (1 - lr) x - lr radius d, which stays inside for lr <= 1 as far as |d| <= 1. None: unconstrained,
            x <- x - lr d.
        weight_decay: decoupled decay, besides what keeps the ball.
        scale: factor of a plain matrix's shape, see `ShapeScale`.
        shared: see `Shared`.

    Kovalev 2025 (2503.12645), algorithm 1, but that the average starts at zero and not at the first gradient: under a
    dual map that makes no difference to the first step, and less to each one after. With a radius Pethick et al. 2025
    (2502.07529), algorithm 1.

    >>> from steepest.norms import Max
    >>> x = torch.nn.Parameter(torch.tensor([[3.0, -0.1]]))
    >>> optimizer = TrustRegion([x], lr=0.5, momentum=0.0, norm=Max())
    >>> (x**2).sum().backward(); optimizer.step(); x.tolist()
    [[2.5, 0.4000000059604645]]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.9,
        norm: Norm | dict[str, Any] = Spectral(),  # noqa: B008  (a frozen value)
        radius: float | None = None,
        weight_decay: float = 0.0,
        scale: str = "none",
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, options(locals()))

    def chain(self, group: dict[str, Any]) -> Chain:
        """Momentum, dual map, length; the ball, or decay."""
        radius, norm = group["radius"], Norm.from_spec(group["norm"])
        shape = ShapeScale("none" if group["geometry"] else group["scale"])
        kept = radius is not None and group["geometry"] is None
        ball = [Scale(radius), WeightDecay(1.0)] if kept else []
        decay = WeightDecay(group["weight_decay"])
        return chain(Momentum(group["momentum"]), Dualize(norm), shape, *ball, decay)
