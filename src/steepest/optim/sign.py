"""Signs of averaged gradients."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.norms import Max
from steepest.optim.engine import Optimizer
from steepest.optim.options import Shared, options
from steepest.transforms import Chain, Dualize, LionMomentum, Momentum, WeightDecay, chain


class SignSGD(Optimizer):
    """Signs of the gradient, or with momentum of its average (Signum): steepest descent under the largest entry.

    Args:
        params: parameters, named parameters or groups; see `Optimizer`.
        lr: size of every entry of a step.
        momentum: factor of the average of gradients; 0 for none.
        weight_decay: decoupled decay.
        shared: see `Shared`.

    Bernstein, Wang, Azizzadenesheli and Anandkumar 2018 (1802.04434), algorithms 1 and 2.

    >>> x = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    >>> optimizer = SignSGD([x], lr=0.5)
    >>> (x**2).sum().backward(); optimizer.step(); x.tolist()
    [2.5, -1.5]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, options(locals()))

    def chain(self, group: dict[str, Any]) -> Chain:
        """Momentum, signs, decay."""
        momentum = [Momentum(group["momentum"])] if group["momentum"] else []
        return chain(*momentum, Dualize(Max()), WeightDecay(group["weight_decay"]))


class Lion(Optimizer):
    """Signs of an average that forgets faster than the one that is kept.

    Args:
        params: parameters, named parameters or groups; see `Optimizer`.
        lr: size of every entry of a step; a third to a tenth of AdamW's.
        betas: factors of the average that is stepped along and of the one that is kept.
        weight_decay: decoupled decay; three to ten times AdamW's.
        shared: see `Shared`.

    Chen et al. 2023 (2302.06675), algorithm 2.

    >>> optimizer = Lion(torch.nn.Linear(2, 2).parameters(), lr=1e-4, weight_decay=0.1)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, options(locals()))

    def chain(self, group: dict[str, Any]) -> Chain:
        """Momentum, signs, decay."""
        return chain(LionMomentum(tuple(group["betas"])), Dualize(Max()), WeightDecay(group["weight_decay"]))
