"""Adam in a subspace that descends as well."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from steepest.optim.galore import GaLore
from steepest.optim.options import MatrixShared
from steepest.projectors import Online, Projector
from steepest.transforms import AdamScale, Chain, Transform


class OnlineSubspaceDescent(GaLore):
    """GaLore with a subspace that makes a gradient step of its own after each step, towards holding more of the
    gradient; it takes no decomposition but the first.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points; that of the subspace follows it in proportion.
        rank, inner, scale, side, moved, weight_decay: as for `GaLore`.
        projector: see `Online`.
        shared: see `MatrixShared`.

    Liang et al. 2024 (2408.12857), algorithm 1.

    >>> optimizer = OnlineSubspaceDescent(param_groups(torch.nn.Linear(8, 8)), rank=2)
    """

    in_suite: ClassVar[dict[str, Any]] = {"projector": Online(every=5)}

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        rank: float = 0.25,
        inner: Transform | Chain | list[Any] = AdamScale(eps=1e-6),  # noqa: B008  (a frozen value)
        projector: Projector | dict[str, Any] = Online(),  # noqa: B008
        scale: float = 0.25,
        side: str = "short",
        moved: str = "keep",
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, lr, rank, inner, projector, scale, side, moved, weight_decay, **shared)
