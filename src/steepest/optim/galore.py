"""Adam in a subspace of the gradient."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.projectors import OneHead, Power, Projector
from steepest.transforms import (
    AdamScale,
    Chain,
    LowRank,
    Scale,
    SparseResidual,
    Transform,
    WeightDecay,
    chain,
)


class GaLore(MatrixOptimizer):
    """Adam, or any other chain, in a subspace of low rank that follows the gradient: its state is r max(m, n) numbers
    for each moment and r min(m, n) for the subspace, instead of 2 m n.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        rank: r as an int, or as a float up to 1.0 its share of the shorter side.
        inner: what runs in the subspace: a transform, a chain, or several transforms in order.
        projector: the subspace and its schedule. `Power` costs less than a step where an SVD (`Principal`, as
            published) costs hundreds.
        scale: constant factor on a step of matrices and points.
        side: projected side, see `Subspace`.
        moved: what becomes of the inner state when the subspace moves: "keep" (as published), "rotate" or "reset".
        weight_decay: decoupled decay. The authors' code lets it follow the step; here it acts at once with it, which
            differs by a factor 1 - lr weight_decay on the step.
        shared: see `MatrixShared`.

    Zhao et al. 2024 (2403.03507), algorithm 2, with the defaults of the authors' scripts. Their Adam adds eps before it
    corrects the bias; torch's and this one after.

    >>> from steepest.transforms import Dualize, Momentum
    >>> layer = torch.nn.Linear(8, 8)
    >>> optimizer = GaLore(param_groups(layer), rank=2)
    >>> muon_in_a_subspace = GaLore(param_groups(layer), inner=[Momentum(0.95), Dualize()], moved="rotate")
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
        scale: float = 0.25,
        side: str = "short",
        moved: str = "keep",
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """The inner chain in the subspace, factor, decay."""
        low = LowRank(group["inner"], group["rank"], group["projector"], group["side"], group["moved"])
        return chain(low, Scale(group["scale"]), WeightDecay(group["weight_decay"]))


class GaLorePlus(MatrixOptimizer):
    """GaLore with one head's subspace for all heads of an attention, and Adam at the entries that the subspace misses
    most.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        rank, inner, projector, scale, moved, weight_decay: as for `GaLore`.
        heads: of the attention that a group's matrices belong to, whose rows are those of one head after the other:
            give query and key matrices a group of their own with `heads`.
        density: share of the entries that are kept of the residual.
        warmup: steps before they are chosen.
        shared: see `MatrixShared`.

    Liao et al. 2024 (2412.19820); there is no code of the authors: see `OneHead` and `SparseResidual` for what was
    chosen.

    >>> optimizer = GaLorePlus(param_groups(torch.nn.Linear(8, 8)), rank=2, heads=4)
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
        heads: int = 1,
        density: float = 0.01,
        warmup: int = 100,
        scale: float = 0.25,
        moved: str = "keep",
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """The inner chain in the subspace and at single entries, factor, decay."""
        projector = OneHead(projector=group["projector"], heads=group["heads"])
        sparse = {"density": group["density"], "warmup": group["warmup"]}
        low = SparseResidual(group["inner"], group["rank"], projector, moved=group["moved"], **sparse)
        return chain(low, Scale(group["scale"]), WeightDecay(group["weight_decay"]))
