"""Gradient descent with momentum."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.optim.engine import Optimizer
from steepest.optim.options import Shared, options
from steepest.transforms import Chain, Momentum, WeightDecay, chain


class SGD(Optimizer):
    """Gradient descent, with momentum if asked for; torch.optim.SGD on plain parameters, Riemannian SGD on a manifold.

    Args:
        params: parameters, named parameters or groups; see `Optimizer`.
        lr: learning rate.
        momentum: factor of the running sum of gradients.
        nesterov: look one step ahead.
        weight_decay: added to the gradient times the parameter (L2).
        shared: see `Shared`.

    Bonnabel 2013 (1111.5280) for manifolds.

    >>> x = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = SGD([x], lr=0.5)
    >>> (x**2).sum().backward(); optimizer.step(); x.tolist()
    [0.0, 0.0]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, options(locals()))

    def chain(self, group: dict[str, Any]) -> Chain:
        """Decay into the gradient, then the running sum."""
        momentum = Momentum(group["momentum"], group["nesterov"], ema=False)
        return chain(WeightDecay(group["weight_decay"]), *([momentum] if momentum.beta else []))
