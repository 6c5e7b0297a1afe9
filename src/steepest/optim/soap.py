"""Adam in the eigenbasis of Shampoo's statistics."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.bases import Eigenbasis
from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.transforms import AdamScale, Chain, Rotate, WeightDecay, chain


class SOAP(MatrixOptimizer):
    """Adam in the eigenbasis of averaged row and column statistics ("Shampoo with Adam in the preconditioner's
    eigenbasis").

    The first step looks at the gradient, and moves nothing: see `Rotate`.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        betas: factors of the averages of the rotated gradient and of its squares.
        eps: added to the root of the latter, behind the correction of its bias; in the authors' code before it.
        every: steps from one turn of the basis to the next.
        beta: factor of the statistics' average; None for betas[1].
        sides: "both", or "left" or "right" for one basis alone, and half the state and the work.
        max_side: longer sides keep their axes.
        weight_decay: decoupled decay. The authors' code lets it follow the step; here it acts at once with it.
        shared: see `MatrixShared`.

    Vyas, Morwani, Zhao, Shapira, Brandfonbrener, Janson and Kakade 2024 (2409.11321), algorithm 3; defaults of the
    authors' code. Vectors go to AdamW here, and there to Adam with the options of matrices.

    >>> optimizer = SOAP(param_groups(torch.nn.Linear(4, 2)), lr=3e-3, every=10)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        every: int = 10,
        beta: float | None = None,
        sides: str = "both",
        max_side: int = 10_000,
        weight_decay: float = 0.01,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """Adam in the basis, decay."""
        betas = tuple(group["betas"])
        basis = Eigenbasis(betas[1] if group["beta"] is None else group["beta"], group["every"])
        adam = Rotate(AdamScale(betas, group["eps"]), basis, group["sides"], group["max_side"])
        return chain(adam, WeightDecay(group["weight_decay"]))
