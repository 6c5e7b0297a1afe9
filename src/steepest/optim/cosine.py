"""Methods in a subspace of cosines."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from steepest.norms import Norm, Spectral
from steepest.optim.matrix_optimizer import MatrixOptimizer
from steepest.optim.options import MatrixShared, options
from steepest.projectors import Cosine, Projector
from steepest.transforms import AdamScale, Chain, Dualize, LowRank, ShapeScale, Transform, WeightDecay, chain


class Trion(MatrixOptimizer):
    """Dion in a subspace of cosines: the momentum's r largest columns under a discrete cosine transform,
    orthogonalised; what a step leaves out stays in the momentum. No decomposition, and r numbers for the subspace.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points; what it means depends on `scale`.
        momentum: factor by which the part of the momentum that was used decays.
        rank: r as an int, or as a float up to 1.0 its share of the shorter side.
        weight_decay: decoupled decay.
        norm: `Spectral(...)` with its schedule, or any other norm.
        scale: as for `Muon`.
        projector: the subspace.
        shared: see `MatrixShared`.

    Modoranu et al. 2025 (2505.17967), algorithm 3. For tall matrices the authors' code takes the transform of type III;
    here it is of type II, as for wide ones, whose columns are the cosines in their order.

    >>> optimizer = Trion(param_groups(torch.nn.Linear(8, 8)), rank=2)
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.95,
        rank: float = 0.25,
        weight_decay: float = 0.0,
        *,
        norm: Norm | dict[str, Any] = Spectral(),  # noqa: B008  (a frozen value)
        scale: str = "spectral",
        projector: Projector | dict[str, Any] = Cosine(),  # noqa: B008
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """The polar factor in the subspace, the rest fed back, length, decay."""
        dual = Dualize(Norm.from_spec(group["norm"]))
        polar = LowRank(dual, group["rank"], group["projector"], feedback=group["momentum"])
        shape = ShapeScale("none" if group["geometry"] else group["scale"])
        return chain(polar, shape, WeightDecay(group["weight_decay"]))


class DCTAdamW(MatrixOptimizer):
    """AdamW in a subspace of cosines, chosen anew for each gradient: no decomposition, and r numbers for the subspace.

    Args:
        params: best `param_groups(model)`; see `MatrixOptimizer`.
        lr: learning rate of matrices and points.
        rank: r as an int, or as a float up to 1.0 its share of the shorter side.
        inner: what runs in the subspace.
        projector: the subspace, and how often it is chosen.
        feedback: add what the projection left out to the next gradient, for one more tensor of its size.
        moved: "rotate", or "keep".
        weight_decay: decoupled decay.
        shared: see `MatrixShared`.

    Modoranu et al. 2025 (2505.17967), algorithm 2. Columns of the cosine transform are orthogonal, so that to rotate is
    to sort: a column that stays keeps its moments, one that is new starts with none. The authors' code has the types of
    transform that `Trion` says, and rotates where it is asked to.

    >>> optimizer = DCTAdamW(param_groups(torch.nn.Linear(8, 8)), rank=2)
    """

    chains: ClassVar[tuple[str, ...]] = ("inner",)

    def __init__(
        self,
        params: Any,
        lr: float = 0.003,
        rank: float = 0.25,
        inner: Transform | Chain | list[Any] = AdamScale(),  # noqa: B008  (a frozen value)
        projector: Projector | dict[str, Any] = Cosine(),  # noqa: B008
        feedback: bool = False,
        moved: str = "rotate",
        weight_decay: float = 0.0,
        **shared: Unpack[MatrixShared],
    ) -> None:
        super().__init__(params, options(locals()))

    def matrix_chain(self, group: dict[str, Any]) -> Chain:
        """The inner chain in the subspace, decay."""
        rest = {"moved": group["moved"], "feedback": 0.0 if group["feedback"] else None}
        low = LowRank(group["inner"], group["rank"], group["projector"], **rest)
        return chain(low, WeightDecay(group["weight_decay"]))
