"""Adafactor with compressed momentum."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.projectors import Gaussian, Projector
from steepest.transforms import (
    Chain,
    ClipRMS,
    FactoredScale,
    Momentum,
    ParameterScale,
    ScaledResidual,
    WeightDecay,
    chain,
)


class FLORA(MatrixOptimizer):
    """Adafactor, with a momentum that is kept in a random subspace of low rank; what a step takes of the gradient at
    hand it takes in full.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points, relative to the parameter's size where `relative` is set.
        rank: of the momentum, an int, or as a float up to 1.0 its share of the shorter side.
        momentum: its factor.
        projector: the subspace, which is random, and how often another is drawn.
        beta2_decay: as for `Adafactor`.
        bound: largest root mean square of a step, before it is scaled.
        relative: lr is a share of the parameter's size.
        weight_decay: decoupled decay, relative as lr.
        shared: see `MatrixShared`.

    Hao, Cao and Mou 2024 (2402.03293), algorithm 2 and the authors' code. At a step that draws a new subspace theirs
    still takes the momentum from the old one, and here it has moved before.

    >>> optimizer = FLORA(param_groups(torch.nn.Linear(8, 8)), rank=2)
    """

    in_suite: ClassVar[dict[str, Any]] = {"projector": Gaussian(every=1000, orthonormal=True)}

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        rank: float = 0.25,
        momentum: float = 0.9,
        projector: Projector | dict[str, Any] = Gaussian(every=1000),  # noqa: B008  (a frozen value)
        beta2_decay: float = -0.8,
        bound: float = 1.0,
        relative: bool = True,
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """Adafactor's division, compressed momentum, bound, decay, the parameter's size."""
        beta = group["momentum"]
        rest = {"moved": "rotate", "factor": 1 - beta, "growth": None}
        momentum = ScaledResidual(Momentum(beta), group["rank"], group["projector"], **rest)
        size = [ParameterScale()] if group["relative"] else []
        decay = WeightDecay(group["weight_decay"])
        return chain(FactoredScale(-group["beta2_decay"]), momentum, ClipRMS(group["bound"]), decay, *size)
