"""Gradients scaled by factors from a random subspace."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.projectors import Gaussian, Projector
from steepest.transforms import (
    AdamScale,
    Chain,
    LimitGrowth,
    Scale,
    ScaleChannels,
    Transform,
    WeightDecay,
    chain,
)


class APOLLO(MatrixOptimizer):
    """The gradient itself, its rows scaled as Adam would scale them, which it finds out in a random subspace: memory of
    2 r max(m, n) numbers, and none for the subspace.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        rank, inner, projector, moved, weight_decay: as for `GaLore`.
        scale: a step of matrices and points is multiplied by its root.
        whole: one factor for each matrix, as `APOLLOMini`.
        growth: a step's norm may grow by this factor from step to step; None for no bound.
        shared: see `MatrixShared`.

    Zhu et al. 2024 (2412.05270), algorithm 1. Norms are compared with Adam's bias corrected, in the authors' code
    before that.

    >>> optimizer = APOLLO(param_groups(torch.nn.Linear(8, 8)), rank=2)
    """

    chains: ClassVar[tuple[str, ...]] = ("inner",)
    in_suite: ClassVar[dict[str, Any]] = {"projector": Gaussian(every=1)}

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        rank: float = 0.25,
        inner: Transform | Chain | list[Any] = AdamScale(eps=1e-6),  # noqa: B008  (a frozen value)
        projector: Projector | dict[str, Any] = Gaussian(),  # noqa: B008
        scale: float = 1.0,
        whole: bool = False,
        growth: float | None = 1.01,
        moved: str = "keep",
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """The scaled gradient, its growth limited, factor, decay."""
        rest = {"moved": group["moved"], "whole": group["whole"]}
        scaled = ScaleChannels(group["inner"], group["rank"], group["projector"], **rest)
        limit = [LimitGrowth(group["growth"])] if group["growth"] is not None else []
        return chain(scaled, *limit, Scale(group["scale"] ** 0.5), WeightDecay(group["weight_decay"]))


class APOLLOMini(APOLLO):
    """`APOLLO` with one factor for each matrix, found in one dimension: the memory of SGD without momentum.

    >>> optimizer = APOLLOMini(param_groups(torch.nn.Linear(8, 8)))
    >>> optimizer.param_groups[0]["rank"], optimizer.param_groups[0]["scale"]
    (1, 128.0)
    """

    in_suite: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, params: Any, lr: float = 0.01, weight_decay: float = 0.0, **options: Unpack[MatrixShared]
    ) -> None:
        super().__init__(params, lr, rank=1, scale=128.0, whole=True, weight_decay=weight_decay, **options)
