"""Adam along the momentum's singular vectors."""

from __future__ import annotations

from typing import Any, Unpack

from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.transforms import Chain, Scale, SpectralScale, WeightDecay, chain


class Conda(MatrixOptimizer):
    """Adam whose second moment is taken along singular vectors of the momentum ("column-normalised").

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        betas: factors of the averages of the gradient and of its squares.
        eps: added to the root of the latter.
        every: steps between computations of the basis.
        scale: constant factor on a step of matrices and points.
        weight_decay: decoupled decay. The authors' code lets it follow the step; here it acts at once with it, which
            differs by a factor 1 - lr weight_decay on the step.
        shared: see `MatrixShared`.

    Wang et al. 2025 (2509.24218), algorithm 1; defaults of the authors' scripts.

    >>> optimizer = Conda(param_groups(torch.nn.Linear(4, 2)), lr=0.01)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        every: int = 2000,
        scale: float = 0.25,
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """Adam in the basis, factor, decay."""
        adam = SpectralScale(tuple(group["betas"]), group["eps"], group["every"])
        return chain(adam, Scale(group["scale"]), WeightDecay(group["weight_decay"]))
