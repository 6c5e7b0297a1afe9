"""Adagrad."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.optim.engine import Optimizer
from steepest.optim.options import Shared, options
from steepest.transforms import AdagradScale, Chain, WeightDecay, chain


class Adagrad(Optimizer):
    """Adagrad; torch.optim.Adagrad on plain parameters, and on a manifold the same in the coordinates of its frame.

    Args:
        params: parameters, named parameters or groups; see `Optimizer`.
        lr: learning rate.
        initial_accumulator_value: where the sums of squares start.
        eps: added to their roots.
        weight_decay: added to the gradient times the parameter (L2).
        shared: see `Shared`.

    Duchi, Hazan and Singer 2011.

    >>> optimizer = Adagrad(torch.nn.Linear(2, 2).parameters(), lr=1e-2)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, options(locals()))

    def chain(self, group: dict[str, Any]) -> Chain:
        """Decay into the gradient, then Adagrad."""
        scale = AdagradScale(group["eps"], group["initial_accumulator_value"])
        return chain(WeightDecay(group["weight_decay"]), scale)
