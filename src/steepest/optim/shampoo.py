"""Kronecker-factored preconditioning."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.transforms import Chain, Momentum, Precondition, WeightDecay, chain


class Shampoo(MatrixOptimizer):
    """Matrices divided by the fourth roots of their summed row and column statistics, then averaged.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        momentum: factor of the average of preconditioned gradients.
        beta: 1 to sum the statistics, below 1 to average them.
        eps: added to the statistics' diagonal, relative to its mean.
        every: steps between computations of the roots.
        weight_decay: decoupled decay.
        shared: see `MatrixShared`.

    Gupta, Koren and Singer 2018 (1802.09568), algorithm 1.

    >>> optimizer = Shampoo(param_groups(torch.nn.Linear(4, 2)), lr=0.1, every=10)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        beta: float = 1.0,
        eps: float = 1e-6,
        every: int = 1,
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """Preconditioning, momentum, decay."""
        precondition = Precondition(group["beta"], group["eps"], group["every"])
        return chain(precondition, Momentum(group["momentum"]), WeightDecay(group["weight_decay"]))
