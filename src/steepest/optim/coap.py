"""Adam in a subspace that agrees with its momentum."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from steepest.optim.galore import GaLore
from steepest.optim.options import MatrixShared
from steepest.projectors import Correlated, Projector
from steepest.transforms import AdamScale, Chain, Transform


class COAP(GaLore):
    """GaLore with a subspace that is corrected, between its computations from scratch, so that the lifted momentum
    points along the gradient.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        rank, inner, scale, side, weight_decay: as for `GaLore`.
        projector: see `Correlated`.
        moved: "keep", or "rotate" as the authors' `restore_state`, whose rule for the second moment is another one,
            the square of what becomes of its root.
        shared: see `MatrixShared`.

    Xiao et al. 2024 (2412.00071), algorithm 1. Convolutions are matrices here, by their groups' `matrix` patterns, and
    not projected on every side.

    >>> optimizer = COAP(param_groups(torch.nn.Linear(8, 8)), rank=2)
    """

    in_suite: ClassVar[dict[str, Any]] = {"projector": Correlated(every=5)}

    def __init__(
        self,
        params: Any,
        lr: float = 0.003,
        rank: float = 0.25,
        inner: Transform | Chain | list[Any] = AdamScale(eps=1e-6),  # noqa: B008  (a frozen value)
        projector: Projector | dict[str, Any] = Correlated(),  # noqa: B008
        scale: float = 1.0,
        side: str = "short",
        moved: str = "keep",
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, lr, rank, inner, projector, scale, side, moved, weight_decay, **shared)
