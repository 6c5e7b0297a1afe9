"""SM3."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.optim.engine import Optimizer
from steepest.optim.options import Shared, options
from steepest.transforms import Chain, Momentum, SM3Scale, WeightDecay, chain


class SM3(Optimizer):
    """Adagrad with one number of state to each row, each column, each slice along any axis, and the average of what it
    gives.

    Args:
        params: parameters, named parameters or groups; see `Optimizer`.
        lr: learning rate.
        momentum: factor of the average of scaled gradients; 0 for none.
        weight_decay: decoupled decay, which the authors do not have.
        shared: see `Shared`.

    Anil, Gupta, Koren and Singer 2019 (1901.11150), SM3-II, as in the authors' code for TensorFlow, where the average
    weighs what is new by 1 - momentum.

    >>> layer = torch.nn.Linear(200, 100)
    >>> optimizer = SM3(layer.parameters(), lr=0.1, momentum=0.0)
    >>> layer(torch.ones(200)).sum().backward(); optimizer.step()
    >>> sum(s.numel() for s in optimizer.state[layer.weight].values())
    301
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, options(locals()))

    def chain(self, group: dict[str, Any]) -> Chain:
        """SM3's division, momentum, decay."""
        momentum = [Momentum(group["momentum"])] if group["momentum"] else []
        return chain(SM3Scale(), *momentum, WeightDecay(group["weight_decay"]))
