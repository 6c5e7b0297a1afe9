"""GaLore with the rest of the gradient."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.projectors import Power, Projector
from steepest.transforms import AdamScale, Chain, ScaledResidual, Transform, WeightDecay, chain


class Fira(MatrixOptimizer):
    """Adam in a subspace, as in GaLore, and outside of it the gradient itself, each row scaled as Adam has scaled it
    inside: steps of full rank with the state of a low one.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        rank, inner, projector, moved, weight_decay: as for `GaLore`.
        scale: of the step in the subspace, relative to the rest; the authors' scripts have 0.25, with another rest: see
            `ScaledResidual`.
        growth: the norm of the rest may grow by this factor from step to step; None for no bound.
        shared: see `MatrixShared`.

    Chen et al. 2024 (2410.01623), algorithm 1. Norms are compared with Adam's bias corrected, in the authors' code
    before that.

    >>> optimizer = Fira(param_groups(torch.nn.Linear(8, 8)), rank=2)
    """

    chains: ClassVar[tuple[str, ...]] = ("inner",)
    in_suite: ClassVar[dict[str, Any]] = {"projector": Power(every=5, iterations=2)}

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        rank: float = 0.25,
        inner: Transform | Chain | list[Any] = AdamScale(eps=1e-6),  # noqa: B008  (a frozen value)
        projector: Projector | dict[str, Any] = Power(),  # noqa: B008
        scale: float = 1.0,
        growth: float | None = 1.01,
        moved: str = "keep",
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """The inner chain in the subspace and the scaled rest, decay."""
        rest = {"moved": group["moved"], "scale": group["scale"], "growth": group["growth"]}
        low = ScaledResidual(group["inner"], group["rank"], group["projector"], **rest)
        return chain(low, WeightDecay(group["weight_decay"]))
